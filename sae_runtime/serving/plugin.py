"""The vLLM endpoint plugin: Sensecheck's routes in the API server, under ``/v1`` so that the server's API key guards them.

Loaded through the ``vllm.endpoint_plugins`` entry point when ``sensecheck serve`` names it in ``VLLM_PLUGINS``.
"""

from __future__ import annotations

import asyncio
import logging
import os
from argparse import Namespace
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field
from safetensors.torch import save
from starlette.datastructures import State

from sae_runtime.catalog.view import FeatureDetail, feature_detail
from sae_runtime.detector import Detector, Inspector, Reading
from sae_runtime.detector.artefacts import Artefacts
from sae_runtime.detector.notes import annotate_after
from sae_runtime.engines.chat import ChatEncoder
from sae_runtime.errors import InputError, SensecheckError
from sae_runtime.glossary import Glossary
from sae_runtime.paths import CATALOG_FILE
from sae_runtime.serving.readers import SidecarReader, WorkerReader
from sae_runtime.serving.service import BusyError, ReadingService

logger = logging.getLogger("sensecheck")

MAX_MESSAGES = 256
MAX_CHARACTERS = 400_000
_CLIENT_GONE = 499  # nobody sees it but the access log


class InspectMessage(BaseModel):
    """One message: its role and its text."""

    role: Annotated[str, Field(max_length=32)]
    content: Annotated[str, Field(max_length=MAX_CHARACTERS)]


class InspectRequest(BaseModel):
    """What to read.

    ``messages``: the conversation. ``domain``: the deployer's declared domain. ``read``: numbers of the messages in which
    mentions are looked for; by default the last user message. ``tokens``: also read every token; without it only what
    the mentions need is encoded, and a prompt without mentions costs the model nothing. ``only`` and ``without``: slugs of
    concepts to look for or to pass over. ``picks``: senses that the user chose, by concept. ``glossary``: the deployer's own terms; compiled at their first use.
    """

    messages: Annotated[list[InspectMessage], Field(min_length=1, max_length=MAX_MESSAGES)]
    domain: Annotated[str | None, Field(max_length=64)] = None
    read: list[int] | None = None
    tokens: bool = True
    only: Annotated[list[str] | None, Field(max_length=1000)] = None
    without: Annotated[list[str], Field(max_length=1000)] = []
    picks: Annotated[dict[str, str], Field(max_length=1000)] = {}
    glossary: Glossary | None = None


class InspectResponse(Reading):
    """The reading, and the conversation with notes after the last user text."""

    annotated_messages: list[dict[str, str]]


class ResidualRequest(BaseModel):
    """Tokens of a prompt whose residual stream is wanted."""

    model_config = ConfigDict(extra="forbid")

    token_ids: Annotated[list[int], Field(min_length=1, max_length=1_000_000)]


class SensecheckEndpoint:
    """Routes: ``/v1/sae/inspect``, ``/v1/sae/features/{index}``, ``/v1/sae/health`` and one-call chat completions."""

    name = "sensecheck"
    required_tasks = ("generate",)

    def __init__(self) -> None:
        self.service: ReadingService | None = None
        self._artefacts: Artefacts | None = None
        self._one_call: Any = None

    def attach_router(self, app: FastAPI) -> None:
        """Register the routes."""
        from sae_runtime.serving.one_call import OneCall  # imports vLLM's API server

        self._one_call = OneCall()
        self._one_call.attach(app)
        self.attach_reading_routes(app)

    def attach_reading_routes(self, app: FastAPI) -> None:
        """Register the routes under ``/v1/sae``."""

        @app.post("/v1/sae/inspect", response_model=InspectResponse, tags=["sensecheck"])
        async def inspect(request: InspectRequest, raw_request: Request) -> Any:
            """Read a conversation: tokens with features, mentions, misreads, notes, annotated messages."""
            return await _while_connected(raw_request, self._inspect(request))

        @app.get("/v1/sae/features/{index}", response_model=FeatureDetail, tags=["sensecheck"])
        async def feature(index: int) -> Any:
            """One catalogued feature: label, density, examples, scores, concepts that use it."""
            if self._artefacts is None:
                return _error(503, "The catalog is not open yet.")
            location = self._artefacts.folder / CATALOG_FILE
            found = await asyncio.to_thread(feature_detail, location, index)
            return found or _error(404, f"The catalog has no feature {index}.")

        @app.get("/v1/sae/health", tags=["sensecheck"])
        async def health() -> dict[str, Any]:
            """Which model, SAE and catalog read here, and what was read so far."""
            return self._health()

        if os.environ.get("SENSECHECK_SERVE_RESIDUAL"):  # set by `serve --residual`

            @app.post("/v1/sae/residual", tags=["sensecheck"])
            async def residual(request: ResidualRequest, raw_request: Request) -> Response:
                """The residual stream of a prompt as safetensors."""
                return await _while_connected(raw_request, self._residual(request))

    async def init_state(self, engine_client: Any, state: State, args: Namespace) -> None:
        """Open the artefacts that ``sensecheck serve`` named, before the server reports healthy."""
        model = os.environ["SENSECHECK_SERVE_MODEL"]
        folder = Path(os.environ["SENSECHECK_SERVE_ARTEFACTS"])
        opened = await asyncio.to_thread(Artefacts.open, model, folder=folder, fetch=False)
        # One place is left for the token that the engine samples after a prompt.
        detector = Detector(opened.view, ChatEncoder(opened.model.path), engine_client.model_config.max_model_len - 1)
        reader: WorkerReader | SidecarReader
        if channel := os.environ.get("SENSECHECK_SERVE_CHANNEL"):
            from sae_runtime.engines.vllm.channel import Inbox

            reader = WorkerReader(engine_client, Inbox(channel))
        else:
            inspector = await asyncio.to_thread(Inspector.from_artefacts, opened)
            reader = SidecarReader(inspector)
        self._artefacts = opened
        self.service = ReadingService(detector, reader)
        if self._one_call is not None:
            self._one_call.service = self.service

    async def _inspect(self, request: InspectRequest) -> Any:
        if self.service is None:
            return _error(503, "The inspector is not ready.")
        messages: list[Any] = [message.model_dump() for message in request.messages]
        if sum(len(message["content"]) for message in messages) > MAX_CHARACTERS:
            return _error(413, f"The conversation is longer than {MAX_CHARACTERS} characters.")
        read = request.read
        if read is not None and not all(0 <= index < len(messages) for index in read):
            return _error(422, "`read` names a message that does not exist.")
        try:
            reading = await self.service.inspect(
                messages,
                domain=request.domain,
                read=read,
                tokens=request.tokens,
                only=None if request.only is None else frozenset(request.only),
                without=frozenset(request.without),
                picks=request.picks,
                glossary=request.glossary,
            )
        except InputError as error:
            return _error(422, str(error))
        except BusyError as error:
            return _error(503, str(error), {"Retry-After": "1"})
        except SensecheckError as error:
            logger.exception("inspection failed")
            return _error(500, str(error))
        notes = [misread.note for misread in reading.misreads]
        annotated = annotate_after(messages, notes) if notes else messages
        return InspectResponse(**dict(reading), annotated_messages=annotated)

    async def _residual(self, request: ResidualRequest) -> Response:
        if self.service is None or not isinstance(self.service.reader, WorkerReader):
            raise HTTPException(404)
        if len(request.token_ids) > self.service.detector.context_length:
            return _error(422, f"The prompt is longer than {self.service.detector.context_length} tokens.")
        try:
            stream = await self.service.reader.residual(request.token_ids)
        except SensecheckError as error:
            return _error(500, str(error))
        return Response(save({"residual": stream}), media_type="application/octet-stream")

    def _health(self) -> dict[str, Any]:
        if self.service is None:
            return {"status": "starting"}
        view = self.service.detector.view
        reader = self.service.reader
        return {
            "status": "ok",
            "model": view.model_name,
            "layer": view.layer,
            "engine": "vllm" if isinstance(reader, WorkerReader) else "transformers",
            "fingerprints": view.fingerprints,
            "concepts": len(view.concepts),
            "counters": dict(self.service.counters),
            "waiting": reader.inbox.waiting if isinstance(reader, WorkerReader) else 0,
        }


async def _while_connected(request: Request, work: Coroutine[Any, Any, Any]) -> Any:
    """The result of ``work``, which is stopped when the client closes the connection."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task, watch = asyncio.create_task(work), asyncio.create_task(gone())
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else Response(status_code=_CLIENT_GONE)
    finally:
        task.cancel()
        watch.cancel()


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    body = {"error": {"message": message, "type": "sensecheck", "code": status}}
    return JSONResponse(body, status_code=status, headers=headers)
