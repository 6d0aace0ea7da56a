"""The server's routes without vLLM: opened as vLLM opens them, read with something that stands for its worker."""

from __future__ import annotations

import asyncio
import threading
from argparse import Namespace
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from fastapi import FastAPI
from faults.making import LAYER, PATIENCE

from sae_runtime.engines.features import encode_prompt
from sae_runtime.engines.transformers import TransformersEngine
from sae_runtime.engines.vllm.channel import Outbox
from sae_runtime.engines.vllm.requests import ReadRequest
from sae_runtime.sae import load_sae
from sae_runtime.serving.plugin import SensecheckEndpoint

CONTEXT = 256


class Worker:
    """Stands for vLLM: reads as its worker does, with the SAE that lay in the folder at the start.

    Attributes:
        begun: set when a prompt is to be computed.
        release: when cleared, prompts wait for it.
    """

    def __init__(self, model: Path, artefacts: Path, channel: str) -> None:
        self.model_config = SimpleNamespace(max_model_len=CONTEXT)
        self.begun, self.release = threading.Event(), threading.Event()
        self.release.set()
        self._engine = TransformersEngine(model, LAYER)
        self._sae = load_sae(artefacts)
        self._outbox = Outbox(channel)

    async def generate(self, prompt: Any, sampling: Any, **options: Any) -> AsyncIterator[Any]:
        self.begun.set()
        assert await asyncio.to_thread(self.release.wait, PATIENCE)
        request = ReadRequest.of(sampling.extra_args["kv_transfer_params"])
        assert request is not None
        (residual,) = self._engine.residual([prompt["prompt_token_ids"]])
        self._outbox.send(request.reply, request.ticket, encode_prompt(self._sae, residual, request.latents))
        yield None

    def close(self) -> None:
        self._outbox.close()


def app_of(endpoint: SensecheckEndpoint, engine: Any) -> FastAPI:
    """The routes, opened as vLLM opens them."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await endpoint.init_state(engine, app.state, Namespace())
        yield
        if inbox := getattr(endpoint.service.reader, "inbox", None):  # type: ignore[union-attr]
            await inbox.close()

    app = FastAPI(lifespan=lifespan)
    endpoint.attach_reading_routes(app)
    return app


def work(model: str, artefacts: str, channel: str, pipe: Connection) -> None:
    """A worker in a process of its own: prompts come through ``pipe``, readings leave it as vLLM's do; until killed."""
    worker = Worker(Path(model), Path(artefacts), channel)
    pipe.send("ready")
    while True:
        ids, params = pipe.recv()
        sampling = SimpleNamespace(extra_args={"kv_transfer_params": params})

        async def read(ids: list[int] = ids, sampling: Any = sampling) -> None:
            async for _ in worker.generate({"prompt_token_ids": ids}, sampling):
                pass

        asyncio.run(read())
        pipe.send("done")


def main(port: int) -> None:
    """Serve the routes on ``port`` of this machine with the transformers engine, as the environment says, until killed."""
    import uvicorn

    engine = SimpleNamespace(model_config=SimpleNamespace(max_model_len=CONTEXT))
    uvicorn.run(app_of(SensecheckEndpoint(), engine), host="127.0.0.1", port=port, log_level="warning")
