"""Where readings come from: artefacts in this process, or a Sensecheck server."""

from __future__ import annotations

import asyncio
import json
import time
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import httpx

from sae_runtime.detector import Inspector, Reading
from sae_runtime.engines.chat import ChatMessage
from sae_runtime.errors import InputError, InspectionTimeout, ServerError
from sae_runtime.models import DEFAULT_MODEL

_WORKERS = 4
_ROUTE = "/v1/sae/inspect"
_JSON = {"Content-Type": "application/json"}


@runtime_checkable
class InspectionSource(Protocol):
    """Reads conversations within a deadline (seconds).

    Both methods raise :class:`~sae_runtime.errors.InspectionTimeout` when it is missed, and other
    :class:`~sae_runtime.errors.SensecheckError` when the reading fails.
    """

    def inspect(self, messages: list[ChatMessage], *, domain: str | None, read: list[int], deadline: float) -> Reading:
        """Read ``messages``; mentions are looked for in the messages numbered ``read``."""

    async def ainspect(
        self, messages: list[ChatMessage], *, domain: str | None, read: list[int], deadline: float
    ) -> Reading:
        """Like :meth:`inspect`, without blocking the event loop."""


class CatalogSource:
    """Reads in this process with the transformers engine, on a few worker threads."""

    def __init__(self, inspector: Inspector) -> None:
        self.inspector = inspector
        self._pool = ThreadPoolExecutor(_WORKERS, thread_name_prefix="sensecheck")

    @classmethod
    def open(cls, model: str = DEFAULT_MODEL, *, artefacts: Path | None = None, device: str = "cpu") -> CatalogSource:
        """Open a model with its shipped or given artefacts; see :meth:`Inspector.from_model`."""
        return cls(Inspector.from_model(model, artefacts=artefacts, device=device))

    def inspect(self, messages: list[ChatMessage], *, domain: str | None, read: list[int], deadline: float) -> Reading:
        """See :class:`InspectionSource`. A reading that is late goes on in its thread and is dropped."""
        future = self._pool.submit(self.inspector.inspect, messages, domain=domain, read=read)
        try:
            return future.result(deadline)
        except FutureTimeout as error:
            future.cancel()
            raise _late(deadline) from error

    async def ainspect(
        self, messages: list[ChatMessage], *, domain: str | None, read: list[int], deadline: float
    ) -> Reading:
        """See :class:`InspectionSource`."""
        future = self._pool.submit(self.inspector.inspect, messages, domain=domain, read=read)
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), deadline)
        except TimeoutError as error:
            raise _late(deadline) from error


class ServerSource:
    """Reads through ``POST /v1/sae/inspect`` of a server started by ``sensecheck serve``; connections are pooled.

    Args:
        url: the server's root, for example ``http://127.0.0.1:8000``.
        api_key: the server's key, when it asks for one.
    """

    def __init__(self, url: str, *, api_key: str | None = None) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._client = httpx.Client(base_url=self.url, headers=headers)
        self._headers = headers

    def inspect(self, messages: list[ChatMessage], *, domain: str | None, read: list[int], deadline: float) -> Reading:
        """See :class:`InspectionSource`."""
        body = _body(messages, domain, read)
        end = time.monotonic() + deadline  # httpx's own limits hold for each step, ours for all of them together
        try:
            with self._client.stream("POST", _ROUTE, content=body, headers=_JSON, timeout=deadline) as response:
                received = bytearray()
                for piece in response.iter_bytes():
                    received += piece
                    if time.monotonic() > end:
                        raise _late(deadline)
                return _parse(response.status_code, bytes(received))
        except httpx.HTTPError as error:
            raise self._failure(error, deadline) from error

    async def ainspect(
        self, messages: list[ChatMessage], *, domain: str | None, read: list[int], deadline: float
    ) -> Reading:
        """See :class:`InspectionSource`. A fresh client per call: a pooled one would be bound to one event loop."""
        body = _body(messages, domain, read)
        try:
            async with httpx.AsyncClient(base_url=self.url, headers=self._headers) as client:
                request = client.post(_ROUTE, content=body, headers=_JSON, timeout=deadline)
                response = await asyncio.wait_for(request, deadline)
                return _parse(response.status_code, response.content)
        except TimeoutError as error:
            raise _late(deadline) from error
        except httpx.HTTPError as error:
            raise self._failure(error, deadline) from error

    def _failure(self, error: httpx.HTTPError, deadline: float) -> ServerError | InspectionTimeout:
        if isinstance(error, httpx.TimeoutException):
            return _late(deadline)
        return ServerError(
            f"No reading from {self.url}: {error}.", "Start it with `sensecheck serve`, or check the address."
        )


def _late(deadline: float) -> InspectionTimeout:
    return InspectionTimeout(
        f"The reading took longer than {deadline:g} s.", "Raise `deadline`, or shorten the prompt."
    )


def _body(messages: list[ChatMessage], domain: str | None, read: list[int]) -> bytes:
    try:
        return json.dumps({"messages": messages, "domain": domain, "read": read}, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise InputError(
            "The prompt holds half a Unicode character (a lone surrogate).", "Send whole characters."
        ) from error


def _parse(status: int, content: bytes) -> Reading:
    remedy = "See the server's log, and check that the address is that of `sensecheck serve`."
    if 200 <= status < 300:
        try:
            return Reading.model_validate_json(content)
        except ValueError as error:
            raise ServerError("The server's answer is no reading.", remedy) from error
    try:
        detail: Any = json.loads(content)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        detail = content[:200].decode("utf-8", errors="replace")
    kind = InputError if status in (400, 413, 422) else ServerError
    raise kind(f"The server answered {status}: {detail}.", remedy)
