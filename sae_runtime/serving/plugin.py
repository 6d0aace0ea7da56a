"""The vLLM endpoint plugin: Sensecheck's routes in the API server, under ``/v1`` so that the server's API key guards them.

Loaded through the ``vllm.endpoint_plugins`` entry point when ``sensecheck serve`` names it in ``VLLM_PLUGINS``.
"""

from __future__ import annotations

import asyncio
import logging
import os
from argparse import Namespace
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field
from safetensors.torch import save
from starlette.datastructures import State

from sae_runtime import logs, tracing
from sae_runtime.catalog.view import FeatureDetail, feature_detail
from sae_runtime.detector import Detector, Inspector, Reading
from sae_runtime.detector.artefacts import Artefacts
from sae_runtime.detector.notes import annotate_after
from sae_runtime.detector.results import PlacedNote
from sae_runtime.engines.chat import ChatEncoder
from sae_runtime.errors import FingerprintError, InputError, SensecheckError
from sae_runtime.glossary import Glossary
from sae_runtime.serving.limits import MAX_CHARACTERS, MAX_MESSAGES, BodyLimit, Slug, check_size
from sae_runtime.serving.metrics import CatalogInfo
from sae_runtime.serving.observer import Observer
from sae_runtime.serving.prompt_log import PromptLog
from sae_runtime.serving.readers import SidecarReader, WorkerReader
from sae_runtime.serving.refusals import refusals
from sae_runtime.serving.reload import CHECK_SECONDS, CatalogWatch, reopen_with_same_sae
from sae_runtime.serving.service import BusyError, ReadingService

logger = logging.getLogger("sensecheck")

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
    read: Annotated[list[int] | None, Field(max_length=MAX_MESSAGES)] = None
    tokens: bool = True
    only: Annotated[list[Slug] | None, Field(max_length=1000)] = None
    without: Annotated[list[Slug], Field(max_length=1000)] = []
    picks: Annotated[dict[Slug, Slug], Field(max_length=1000)] = {}
    glossary: Glossary | None = None


class InspectResponse(Reading):
    """The reading, and the conversation with notes after the last user text; ``places`` says where they stand in it."""

    annotated_messages: list[dict[str, str]]
    places: list[PlacedNote]
    notes_left_out: int


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
        self._watch: CatalogWatch | None = None
        self._watching: asyncio.Task[None] | None = None
        self._one_call: Any = None
        self._catalog = CatalogInfo()
        # A catalog that is locked holds up pages of features only; one thread, because each keeps memory of its own.
        self._pages = ThreadPoolExecutor(1, "sensecheck-pages")

    def attach_router(self, app: FastAPI) -> None:
        """Register the routes."""
        from sae_runtime.serving.one_call import OneCall  # imports vLLM's API server

        self._one_call = OneCall()
        self._one_call.attach(app)
        self.attach_reading_routes(app)

    def attach_reading_routes(self, app: FastAPI) -> None:
        """Register the routes under ``/v1/sae``."""
        app.add_middleware(BodyLimit)

        inspect_refusals = refusals(400, 413, 422, 500, 503)

        @app.post("/v1/sae/inspect", response_model=InspectResponse, responses=inspect_refusals, tags=["sensecheck"])
        async def inspect(request: InspectRequest, raw_request: Request) -> Any:
            """Read a conversation: tokens with features, mentions, misreads, notes, annotated messages."""
            with tracing.incoming(raw_request.headers):
                return await _while_connected(raw_request, self._inspect(request))

        feature_refusals = refusals(400, 404, 422, 503)

        @app.get(
            "/v1/sae/features/{index}", response_model=FeatureDetail, responses=feature_refusals, tags=["sensecheck"]
        )
        async def feature(index: int) -> Any:
            """One catalogued feature: label, density, examples, scores, concepts that use it."""
            if self._artefacts is None:
                return _error(503, "The catalog is not open yet.")
            sae = self._artefacts.view.sae_fingerprint
            page = partial(feature_detail, self._artefacts.catalog, index, sae=sae)
            try:
                found = await asyncio.get_running_loop().run_in_executor(self._pages, page)
            except SensecheckError as error:
                return _error(503, str(error), {"Retry-After": "1"})
            if self._watch is not None and not self._watch.in_place:
                # Another dictionary's feature of that number would be a wrong answer.
                return _error(503, "The catalog's file is not the one in service.", {"Retry-After": "1"})
            return found or _error(404, f"The catalog has no feature {index}.")

        @app.get("/v1/sae/health", tags=["sensecheck"])
        async def health() -> dict[str, Any]:
            """Which model, SAE and catalog read here, and what was read so far."""
            return self._health()

        if os.environ.get("SENSECHECK_SERVE_RESIDUAL"):  # set by `serve --residual`

            @app.post("/v1/sae/residual", responses=refusals(400, 404, 413, 422, 500), tags=["sensecheck"])
            async def residual(request: ResidualRequest, raw_request: Request) -> Response:
                """The residual stream of a prompt as safetensors."""
                return await _while_connected(raw_request, self._residual(request))

    async def init_state(self, engine_client: Any, state: State, args: Namespace) -> None:
        """Open the artefacts that ``sensecheck serve`` named, before the server reports healthy."""
        logs.configure_from_environment()
        model = os.environ["SENSECHECK_SERVE_MODEL"]
        folder = Path(os.environ["SENSECHECK_SERVE_ARTEFACTS"])
        catalog = os.environ.get("SENSECHECK_SERVE_CATALOG")
        opened = await asyncio.to_thread(Artefacts.open, model, folder=folder, catalog=catalog, fetch=False)
        # One place is left for the token that the engine samples after a prompt.
        detector = Detector(opened.view, ChatEncoder(opened.model.path), engine_client.model_config.max_model_len - 1)
        reader: WorkerReader | SidecarReader
        if channel := os.environ.get("SENSECHECK_SERVE_CHANNEL"):
            from sae_runtime.engines.vllm.channel import Inbox

            _check_worker(opened)
            reader = WorkerReader(engine_client, Inbox(channel))
        else:
            inspector = await asyncio.to_thread(Inspector.from_artefacts, opened)
            reader = SidecarReader(inspector)
        self._artefacts = opened
        self.service = ReadingService(detector, reader, Observer(PromptLog.from_environment()))
        self._announce(opened, reader)
        if opened.file is not None and isinstance(opened.catalog, Path):
            self._watch = CatalogWatch(opened.catalog, opened.file, self._renewed(asyncio.get_running_loop()))
            self._watching = asyncio.create_task(_keep_watching(self._watch))
        if self._one_call is not None:
            self._one_call.service = self.service

    def _renewed(self, loop: asyncio.AbstractEventLoop) -> Callable[[], Callable[[], None]]:
        """What :class:`CatalogWatch` calls, on a thread, when the catalog's file is another one."""

        def prepare() -> Callable[[], None]:
            assert self._artefacts is not None and self.service is not None  # noqa: S101 (set before the watch begins)
            service, old = self.service, self.service.detector
            opened = reopen_with_same_sae(self._artefacts)
            detector = Detector(opened.view, old.encoder, old.context_length)

            def swap() -> None:
                asyncio.run_coroutine_threadsafe(service.use(detector), loop).result()
                self._artefacts = opened
                self._announce(opened, service.reader)

            return swap

        return prepare

    def _announce(self, opened: Artefacts, reader: object) -> None:
        """Have the metrics name the catalog in service."""
        view = opened.view
        self._catalog.use(
            model=view.model_name,
            layer=str(view.layer),
            engine="vllm" if isinstance(reader, WorkerReader) else "transformers",
            catalog=opened.file.fingerprint if opened.file else "",
            sae=view.sae_fingerprint,
            weights=view.model.weights,
        )

    async def _inspect(self, request: InspectRequest) -> Any:
        if self.service is None:
            return _error(503, "The inspector is not ready.")
        messages: list[Any] = [message.model_dump() for message in request.messages]
        try:
            check_size(messages)
        except InputError as error:
            return _error(413, str(error))
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
        except Exception:  # the web server would log its words, which may be the prompt's
            logger.exception("inspection failed")
            return _error(500, "The reading failed; see the server's log.")
        noted = annotate_after(messages, reading.misreads)
        return InspectResponse(
            **dict(reading), annotated_messages=noted.messages, places=noted.places, notes_left_out=noted.left_out
        )

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
            "catalog": None if self._watch is None else asdict(self._watch.state),
        }


def _check_worker(opened: Artefacts) -> None:
    """Refuse a catalog that came while the server was starting: the worker has loaded the SAE of the one before.

    Raises:
        FingerprintError: it did.
    """
    loaded = os.environ.get("SENSECHECK_SERVE_SAE", opened.view.sae_fingerprint)
    if opened.view.sae_fingerprint != loaded:
        raise FingerprintError(
            f"The artefacts in {opened.folder} were replaced while the server was starting.", "Start it again."
        )


async def _keep_watching(watch: CatalogWatch) -> None:
    """Have the catalog's file looked at as long as the server runs; no request waits for it."""
    while True:
        await asyncio.sleep(CHECK_SECONDS)
        if watch.changed():
            await asyncio.to_thread(watch.refresh)


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
