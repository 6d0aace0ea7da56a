"""Fixtures that cost something: the real small model (one per run) and the real vLLM server (one per run)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sae_runtime.detector import Inspector
from sae_runtime.models.manifest import SMALL_MODEL
from sae_runtime.serving import ModelServer, ServerOptions


@pytest.fixture(scope="session")
def small_model() -> str:
    """The built-in model that tests run on."""
    return SMALL_MODEL


@pytest.fixture(scope="session")
def inspector(small_model: str) -> Inspector:
    """The real small model with its shipped SAE and catalog, in this process."""
    return Inspector.from_model(small_model)


@pytest.fixture(scope="session")
def server(small_model: str) -> Iterator[ModelServer]:
    """The real vLLM server with the small model and the inspection routes."""
    with ModelServer.start(small_model, ServerOptions(port=0, max_model_len=2048)) as running:
        yield running
