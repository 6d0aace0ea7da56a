"""The server's routes without vLLM: the shipped catalog of the small model, the tokenizer of a tiny one, no activations."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from tiny_models import make_model

from sae_runtime.catalog.view import CatalogView
from sae_runtime.detector import Detector, Plan
from sae_runtime.engines.chat import ChatEncoder
from sae_runtime.engines.features import PromptFeatures
from sae_runtime.models.manifest import SMALL_MODEL
from sae_runtime.paths import CATALOG_FILE, artefacts_for
from sae_runtime.serving.observer import Observer
from sae_runtime.serving.plugin import SensecheckEndpoint
from sae_runtime.serving.service import ReadingService


class QuietReader:
    """Finds no activation anywhere, or raises ``error``; with a declared domain that is enough for a flag."""

    def __init__(self) -> None:
        self.error: Exception | None = None

    async def features(self, plan: Plan) -> PromptFeatures:
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error
        none = np.zeros(0, np.int32)
        return PromptFeatures(np.ones(len(plan.chat.token_ids), np.bool_), none, none, np.zeros(0, np.float32))

    @asynccontextmanager
    async def riding(self, plan: Plan) -> AsyncIterator[tuple[None, Any]]:
        task = asyncio.create_task(self.features(plan))
        try:
            yield None, task
        finally:
            task.cancel()


@pytest.fixture(scope="session")
def tiny_detector(tmp_path_factory: pytest.TempPathFactory) -> Detector:
    """The real detector with the shipped catalog and a tiny tokenizer."""
    folder = make_model(tmp_path_factory.mktemp("models") / "tiny", "llama")
    view = CatalogView.load(artefacts_for(SMALL_MODEL) / CATALOG_FILE)
    return Detector(view, ChatEncoder(folder), 2048)


@pytest.fixture
def quiet_reader() -> QuietReader:
    return QuietReader()


@pytest.fixture
def open_client(tiny_detector: Detector, quiet_reader: QuietReader) -> Iterator[Callable[..., TestClient]]:
    """Makes a client of a server that reads with :class:`QuietReader`, observed by the given observer."""
    clients: list[TestClient] = []

    def make(observer: Observer | None = None) -> TestClient:
        app, endpoint = FastAPI(), SensecheckEndpoint()
        endpoint.attach_reading_routes(app)
        endpoint.service = ReadingService(tiny_detector, quiet_reader, observer)
        client = TestClient(app, raise_server_exceptions=False)
        clients.append(client.__enter__())
        return client

    yield make
    for client in clients:
        client.__exit__(*sys.exc_info())


@pytest.fixture
def client(open_client: Callable[..., TestClient]) -> TestClient:
    return open_client()


@pytest.fixture
def log_options(tmp_path: Path) -> Callable[..., Any]:
    """Options of a prompt log in the test's folder."""
    from sae_runtime.serving.prompt_files import PromptLogOptions

    return lambda **changes: PromptLogOptions(**{"path": str(tmp_path / "prompts.jsonl"), **changes})
