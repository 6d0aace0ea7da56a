"""A real catalog that is small: three concepts and some of what they use, cut from the one shipped for the small model."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from functools import cache
from typing import Any

import numpy as np

from sae_runtime.catalog.view import CatalogView
from sae_runtime.detector import Detector, Plan
from sae_runtime.engines.chat import ChatEncoder
from sae_runtime.engines.features import PromptFeatures
from sae_runtime.models import resolve_model
from sae_runtime.models.manifest import SMALL_MODEL
from sae_runtime.paths import CATALOG_FILE, artefacts_for

from .files import scratch

CONCEPTS = ("bank", "mouse", "port")
_OF_CONCEPTS = "sense_id IN (SELECT id FROM senses)"
_KEPT = {
    "senses": "concept_id IN (SELECT id FROM concepts)",
    "sense_contexts": f"{_OF_CONCEPTS} AND id % 8 = 0",
    "signatures": _OF_CONCEPTS,
    "cues": f"{_OF_CONCEPTS} AND length(stem) > 6",
    "notes": _OF_CONCEPTS,
    "signature_weights": "signature_id IN (SELECT id FROM signatures) AND feature_id % 16 = 0",
    "early_readings": "concept_id IN (SELECT id FROM concepts)",
    "early_signatures": _OF_CONCEPTS,
    "early_weights": f"{_OF_CONCEPTS} AND feature_id % 16 = 0",
    "features": "id IN (SELECT feature_id FROM signature_weights UNION SELECT feature_id FROM early_weights)",
    "feature_examples": "feature_id IN (SELECT id FROM features) AND id % 4 = 0",
    "feature_validations": "feature_id IN (SELECT id FROM features)",
}  # in the order in which they are thinned out


@cache
def small_catalog() -> bytes:
    """The catalog's file, without a seal."""
    path = scratch() / "small.sqlite"
    shutil.copyfile(artefacts_for(SMALL_MODEL) / CATALOG_FILE, path)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(f"DELETE FROM concepts WHERE slug NOT IN {CONCEPTS}")  # noqa: S608 (constants)
        for table, condition in _KEPT.items():
            connection.execute(f"DELETE FROM {table} WHERE NOT ({condition})")  # noqa: S608 (constants)
        connection.execute("UPDATE builds SET config = '{}', data = '{}'")
        connection.execute("PRAGMA user_version = 0")
        connection.execute("VACUUM")
    return path.read_bytes()


@cache
def encoder() -> ChatEncoder:
    """The small model's tokenizer and chat template."""
    return ChatEncoder(resolve_model(SMALL_MODEL, fetch=False).path)


@cache
def small_detector() -> Detector:
    """A detector with the small catalog."""
    path = scratch() / "detector" / CATALOG_FILE
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(small_catalog())
    return Detector(CatalogView.load(path), encoder(), 512)


def features_of(plan: Plan, view: CatalogView) -> PromptFeatures:
    """Every catalogued feature on every token of ``plan`` but the first, so that every weight of a signature counts."""
    tokens = len(plan.chat.token_ids)
    latents = np.array(sorted(view.features) or [0], dtype=np.int32)
    positions = np.repeat(np.arange(1, tokens, dtype=np.int32), len(latents))
    return PromptFeatures(
        content=np.arange(tokens) > 0,
        positions=positions,
        latents=np.tile(latents, max(0, tokens - 1)),
        values=(1 + positions % 3).astype(np.float32),
    )


class NoEngine:
    """A reader that brings :func:`features_of` at once; stands in for an engine and its model."""

    async def features(self, plan: Plan) -> PromptFeatures:
        """See :class:`~sae_runtime.serving.readers.Reader`."""
        return features_of(plan, small_detector().view)

    @asynccontextmanager
    async def riding(self, plan: Plan) -> AsyncIterator[tuple[dict[str, Any], Any]]:
        """See :class:`~sae_runtime.serving.readers.Reader`."""
        import asyncio

        yield {"sensecheck": {}}, asyncio.ensure_future(self.features(plan))
