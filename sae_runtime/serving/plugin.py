"""Inspection routes inside the vLLM server, under ``/v1/sae`` so that the server's API key guards them.

Loaded through the ``vllm.endpoint_plugins`` entry point when ``sensecheck serve`` names it in ``VLLM_PLUGINS``. The
reading runs in the API server's process with the transformers engine; moving it into the worker changes no route.
"""

from __future__ import annotations

import asyncio
import logging
import os
from argparse import Namespace
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.datastructures import State

from sae_runtime.detector import Inspector, Reading
from sae_runtime.errors import InputError, SensecheckError

logger = logging.getLogger("sensecheck")

MAX_MESSAGES = 256
MAX_CHARACTERS = 400_000
MAX_CONCURRENT = 2  # a reading is one forward pass on the server's own cores


class InspectMessage(BaseModel):
    """One message: its role and its text."""

    role: Annotated[str, Field(max_length=32)]
    content: Annotated[str, Field(max_length=MAX_CHARACTERS)]


class InspectRequest(BaseModel):
    """What to read: the conversation, the declared domain, the messages in which mentions are looked for."""

    messages: Annotated[list[InspectMessage], Field(min_length=1, max_length=MAX_MESSAGES)]
    domain: Annotated[str | None, Field(max_length=64)] = None
    read: list[int] | None = None


class SensecheckEndpoint:
    """vLLM endpoint plugin: ``POST /v1/sae/inspect`` and ``GET /v1/sae/health``."""

    name = "sensecheck"
    required_tasks = ("generate",)

    def __init__(self) -> None:
        self._inspector: Inspector | None = None
        self._slots = asyncio.Semaphore(MAX_CONCURRENT)

    def attach_router(self, app: FastAPI) -> None:
        """Register the routes."""

        @app.post("/v1/sae/inspect", response_model=Reading, tags=["sensecheck"])
        async def inspect(request: InspectRequest) -> Any:
            """Read a conversation: tokens with features, mentions, misreads and notes."""
            return await self._inspect(request)

        @app.get("/v1/sae/health", tags=["sensecheck"])
        async def health() -> dict[str, Any]:
            """Which model, SAE and catalog read here."""
            return self._health()

    async def init_state(self, engine_client: Any, state: State, args: Namespace) -> None:
        """Open the artefacts that ``sensecheck serve`` named, before the server reports healthy."""
        model = os.environ["SENSECHECK_SERVE_MODEL"]
        artefacts = Path(os.environ["SENSECHECK_SERVE_ARTEFACTS"])
        self._inspector = await asyncio.to_thread(Inspector.from_model, model, artefacts=artefacts, fetch=False)

    async def _inspect(self, request: InspectRequest) -> Any:
        if self._inspector is None:
            return _error(503, "The inspector is not ready.")
        messages: list[Any] = [message.model_dump() for message in request.messages]
        if sum(len(message["content"]) for message in messages) > MAX_CHARACTERS:
            return _error(413, f"The conversation is longer than {MAX_CHARACTERS} characters.")
        read = request.read
        if read is not None and not all(0 <= index < len(messages) for index in read):
            return _error(422, "`read` names a message that does not exist.")
        try:
            async with self._slots:
                return await asyncio.to_thread(self._inspector.inspect, messages, domain=request.domain, read=read)
        except InputError as error:
            return _error(422, str(error))
        except SensecheckError as error:
            logger.exception("inspection failed")
            return _error(500, str(error))

    def _health(self) -> dict[str, Any]:
        if self._inspector is None:
            return {"status": "starting"}
        view = self._inspector.view
        return {
            "status": "ok",
            "model": view.model_name,
            "layer": view.layer,
            "fingerprints": {**view.model.model_dump(), "sae": view.sae_fingerprint},
            "concepts": len(view.concepts),
        }


def _error(status: int, message: str) -> JSONResponse:
    return JSONResponse({"error": {"message": message, "type": "sensecheck", "code": status}}, status_code=status)
