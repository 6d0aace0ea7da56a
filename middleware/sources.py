"""Where readings come from: artefacts in this process, or a Sensecheck server."""

from __future__ import annotations

import asyncio
import json
import time
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from pathlib import Path
from typing import Any, Protocol, runtime_checkable
from weakref import WeakKeyDictionary

import httpx

from sae_runtime.catalog.view import CatalogView
from sae_runtime.detector import Inspector, Reading
from sae_runtime.engines.chat import ChatMessage
from sae_runtime.errors import FingerprintError, InputError, InspectionTimeout, ServerError
from sae_runtime.models import DEFAULT_MODEL
from sae_runtime.paths import CATALOG_FILE
from sae_runtime.serving import bearer

_WORKERS = 4
_ROUTE = "/v1/sae/inspect"
_HEALTH = "/v1/sae/health"
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
    """Reads in this process with the transformers engine, on a few worker threads.

    Args:
        inspector: does the reading.
        tokens: also read every token of the prompt, for people who look at it; else only what its mentions need.
    """

    def __init__(self, inspector: Inspector, *, tokens: bool = False) -> None:
        self.inspector = inspector
        self.tokens = tokens
        self._pool = ThreadPoolExecutor(_WORKERS, thread_name_prefix="sensecheck")

    @classmethod
    def open(cls, model: str = DEFAULT_MODEL, *, artefacts: Path | None = None, device: str = "cpu") -> CatalogSource:
        """Open a model with its shipped or given artefacts; see :meth:`Inspector.from_model`."""
        return cls(Inspector.from_model(model, artefacts=artefacts, device=device))

    def inspect(self, messages: list[ChatMessage], *, domain: str | None, read: list[int], deadline: float) -> Reading:
        """See :class:`InspectionSource`. A reading that is late goes on in its thread and is dropped."""
        future = self._pool.submit(self.inspector.inspect, messages, domain=domain, read=read, tokens=self.tokens)
        try:
            return future.result(deadline)
        except FutureTimeout as error:
            future.cancel()
            raise _late(deadline) from error

    async def ainspect(
        self, messages: list[ChatMessage], *, domain: str | None, read: list[int], deadline: float
    ) -> Reading:
        """See :class:`InspectionSource`."""
        future = self._pool.submit(self.inspector.inspect, messages, domain=domain, read=read, tokens=self.tokens)
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), deadline)
        except TimeoutError as error:
            raise _late(deadline) from error


class ServerSource:
    """Reads through ``POST /v1/sae/inspect`` of a server started by ``sensecheck serve``; connections are pooled.

    Args:
        url: the server's root, for example ``http://127.0.0.1:8000``.
        api_key: the server's key, when it asks for one.
        artefacts: folder of a catalog; a server that reads with another one is refused.
        tokens: also read every token of the prompt, for people who look at it; else only what its mentions need.
    """

    def __init__(
        self, url: str, *, api_key: str | None = None, artefacts: Path | None = None, tokens: bool = False
    ) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        self.tokens = tokens
        self._headers = bearer(api_key)
        self._client = httpx.Client(base_url=self.url, headers=self._headers)
        # A connection belongs to the event loop that made it.
        self._clients: WeakKeyDictionary[asyncio.AbstractEventLoop, httpx.AsyncClient] = WeakKeyDictionary()
        self._expected = CatalogView.load(artefacts / CATALOG_FILE) if artefacts is not None else None

    def close(self) -> None:
        """Close the connections of synchronous calls."""
        self._client.close()

    async def aclose(self) -> None:
        """Close the connections of this event loop's calls."""
        client = self._clients.pop(asyncio.get_running_loop(), None)
        if client is not None:
            await client.aclose()

    def inspect(self, messages: list[ChatMessage], *, domain: str | None, read: list[int], deadline: float) -> Reading:
        """See :class:`InspectionSource`."""
        body = _body(messages, domain, read, self.tokens)
        end = time.monotonic() + deadline  # httpx's own limits hold for each step, ours for all of them together
        try:
            if self._expected is not None:
                self._check(self._client.get(_HEALTH, timeout=deadline))
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
        """See :class:`InspectionSource`."""
        body = _body(messages, domain, read, self.tokens)
        loop = asyncio.get_running_loop()
        if loop not in self._clients:
            self._clients[loop] = httpx.AsyncClient(base_url=self.url, headers=self._headers)
        client = self._clients[loop]
        try:
            async with asyncio.timeout(deadline):
                if self._expected is not None:
                    self._check(await client.get(_HEALTH, timeout=deadline))
                response = await client.post(_ROUTE, content=body, headers=_JSON, timeout=deadline)
            return _parse(response.status_code, response.content)
        except TimeoutError as error:
            raise _late(deadline) from error
        except httpx.HTTPError as error:
            raise self._failure(error, deadline) from error

    def _check(self, response: httpx.Response) -> None:
        """Compare the server's fingerprints with those of the catalog that was given; once is enough."""
        assert self._expected is not None  # noqa: S101 (checked by the caller)
        try:
            found = response.raise_for_status().json()["fingerprints"]
        except (ValueError, KeyError, TypeError) as error:
            raise ServerError(f"{self.url} does not say what it reads with.", "Start `sensecheck serve`.") from error
        if differing := [name for name, value in self._expected.fingerprints.items() if found.get(name) != value]:
            raise FingerprintError(
                f"The server at {self.url} reads with other artefacts than yours: {', '.join(differing)} differ.",
                "Serve the model and artefacts that your catalog belongs to.",
            )
        self._expected = None

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


def _body(messages: list[ChatMessage], domain: str | None, read: list[int], tokens: bool) -> bytes:
    body = {"messages": messages, "domain": domain, "read": read, "tokens": tokens}
    try:
        return json.dumps(body, ensure_ascii=False).encode()
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
