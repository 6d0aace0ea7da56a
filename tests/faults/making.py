"""Real artefacts in seconds: a tiny model, a random dictionary, a catalog of one concept that is always misread."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import HumanMessage
from sqlalchemy.orm import Session
from tiny_models import HIDDEN

from middleware import SAEAnnotator
from sae_runtime.catalog.store import create_catalog, seal_catalog
from sae_runtime.catalog.tables import (
    ConceptRow,
    CueRow,
    FeatureExampleRow,
    FeatureRow,
    ModelRow,
    NoteRow,
    SaeRow,
    SenseRow,
    SignatureRow,
    SignatureWeightRow,
)
from sae_runtime.models import fingerprint_model
from sae_runtime.paths import CATALOG_FILE
from sae_runtime.sae import JumpReLUSAE, save_sae
from sae_runtime.sae.fingerprint import fingerprint_sae

LAYER, WIDTH = 1, 8
TEXT = "We sat on the bank of the river."
MESSAGES: Any = [{"role": "user", "content": TEXT}]
PATIENCE = 60.0  # seconds; only a broken product waits that long


def make_artefacts(
    folder: Path, model: Path, *, note: str = "First.", sae_seed: int = 0, layer: int = LAYER, width: int = WIDTH,
    features: int = WIDTH, **parts: str,
) -> Path:  # fmt: skip
    """Dictionary and catalog of ``model`` in ``folder``; returns it.

    Args:
        folder: new or empty.
        model: folder of the model.
        note: what the one concept's note says; tells the catalogs of a test apart.
        sae_seed: of the dictionary's weights.
        layer: that the catalog says it is of.
        width: of the dictionary.
        features: number of catalogued ones.
        parts: fingerprints of the model that are to be wrong.
    """
    draw = torch.Generator().manual_seed(sae_seed)
    weights = {
        "W_enc": torch.randn(HIDDEN, width, generator=draw),
        "W_dec": torch.randn(width, HIDDEN, generator=draw),
        "b_enc": torch.zeros(width),
        "b_dec": torch.zeros(HIDDEN),
        "threshold": torch.full((width,), 0.01),
    }
    save_sae(JumpReLUSAE(weights, {"hook_name": f"blocks.{layer}.hook_resid_post"}), folder)
    fingerprints = {**fingerprint_model(model).model_dump(), **parts}
    engine = create_catalog(folder / CATALOG_FILE)
    with Session(engine) as session, session.begin():
        sae = SaeRow(
            model=ModelRow(name=model.name, **fingerprints), layer=layer, hook_name="h", architecture="jumprelu",
            d_in=HIDDEN, d_sae=width, fingerprint=fingerprint_sae(folder),
        )  # fmt: skip
        session.add(sae)
        session.flush()
        rows = [_feature(sae.id, number) for number in range(features)]
        session.add_all(rows)
        session.flush()
        senses = [_sense("money", 9.0, "loan", rows, note), _sense("river", 0.0, "river", rows, note)]
        session.add(
            ConceptRow(slug="bank", pack="test", forms=["bank"], site="rest", accuracy=1.0, read_below=0.4,
                       intended_above=0.7, senses=senses)
        )  # fmt: skip
    engine.dispose()
    seal_catalog(folder / CATALOG_FILE)
    return folder


def _feature(sae: int, number: int) -> FeatureRow:
    examples = [FeatureExampleRow(text=f"example {n} " * 20, start=0, end=7, activation=9.0 - n) for n in range(5)]
    return FeatureRow(
        sae_id=sae, index=number, label=f"feature {number}", density=0.1, max_activation=9.0, examples=examples,
        description="It fires.", predicate={}, promoted=[], validated=True,
    )  # fmt: skip


def _sense(slug: str, bias: float, cue: str, rows: list[FeatureRow], note: str) -> SenseRow:
    weights = [SignatureWeightRow(feature_id=row.id, weight=0.01 * (bias - row.index)) for row in rows[:3]]
    return SenseRow(
        slug=slug, gloss=f"the {slug}", domains=[slug], contexts=[], notes=[NoteRow(text=note)],
        signature=SignatureRow(bias=bias, weights=weights), cues=[CueRow(stem=cue, weight=9.0)],
    )  # fmt: skip


def put_catalog(source: Path, target: Path) -> None:
    """Replace the catalog in the folder ``target`` by that of ``source``, the dictionary stays: one rename."""
    coming = target / ".coming"
    shutil.copyfile(source / CATALOG_FILE, coming)
    coming.replace(target / CATALOG_FILE)


def put_bytes(data: bytes, target: Path) -> None:
    """Replace the catalog in the folder ``target`` by other bytes."""
    coming = target / ".coming"
    coming.write_bytes(data)
    coming.replace(target / CATALOG_FILE)


def hold(engine: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """Have ``engine`` stop in the middle of a reading: the first event says that it has, setting the second lets it go on."""
    begun, release = threading.Event(), threading.Event()
    residual = engine.residual

    def held(rows: Any) -> Any:
        begun.set()
        assert release.wait(PATIENCE)
        return residual(rows)

    monkeypatch.setattr(engine, "residual", held)
    return begun, release


def annotated(annotator: SAEAnnotator, text: str = TEXT) -> str:
    """What ``annotator`` makes of ``text``; a chain around it answers."""
    chain = annotator | FakeListChatModel(responses=["Wet feet."])
    assert chain.invoke([HumanMessage(text)]).content == "Wet feet."
    (message,) = annotator.invoke([HumanMessage(text)])
    assert str(message.content).startswith(text)
    return str(message.content)


def eventually(true: Callable[[], Any]) -> None:
    """Wait until ``true()`` holds."""
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.01)


def alive(pid: int) -> bool:
    """Whether the process runs (a zombie does not)."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z" and os.path.exists(f"/proc/{pid}")  # noqa: PTH110
