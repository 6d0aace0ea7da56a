"""Readings through a server started by ``sensecheck serve``."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from weakref import WeakKeyDictionary

import httpx
from tenacity import AsyncRetrying, retry_if_exception_type, stop_before_delay, wait_random_exponential

from middleware.sources.background import run
from middleware.sources.base import InspectionRequest, Outcome
from sae_runtime import tracing
from sae_runtime.catalog.view import CatalogView
from sae_runtime.detector import Reading
from sae_runtime.errors import (
    FingerprintError,
    InputError,
    InspectionTimeout,
    SensecheckError,
    ServerError,
    UnavailableError,
)
from sae_runtime.paths import CATALOG_FILE
from sae_runtime.serving import bearer

_ROUTE = "/v1/sae/inspect"
_HEALTH = "/v1/sae/health"
_JSON = {"Content-Type": "application/json"}
_AT_ONCE = 16  # readings of one batch under way when the caller names no limit; the server takes 64
_FIRST_PAUSE = 0.05  # seconds before a second try at most; doubled for each further one
_LAST_TRY = 0.4  # seconds after the first one
_REMEDY = "See the server's log, and check that the address is that of `sensecheck serve`."
_MAX_ANSWER = 64 * 2**20  # bytes; a reading with all tokens of the longest prompt has a few million


class ServerSource:
    """Reads through ``POST /v1/sae/inspect`` of a server started by ``sensecheck serve``; connections are pooled.

    A server that is busy, restarting or drops the connection is asked again a few times within 0.4 s, if the deadline
    allows.

    Args:
        url: the server's root, for example ``http://127.0.0.1:8000``.
        api_key: the server's key, when it asks for one. A pickled source holds it.
        artefacts: folder of a catalog; a server that reads with another one is refused.
        tokens: also read every token of the prompt, for people who look at it; else only what its mentions need.
    """

    def __init__(
        self, url: str, *, api_key: str | None = None, artefacts: Path | None = None, tokens: bool = False
    ) -> None:
        self.url, self._auth = _without_credentials(url.rstrip("/").removesuffix("/v1"))
        self._given = url
        self.tokens = tokens
        self._options = {"api_key": api_key, "artefacts": artefacts}
        self._headers = bearer(api_key)
        # A connection belongs to the event loop that made it.
        self._clients: WeakKeyDictionary[asyncio.AbstractEventLoop, httpx.AsyncClient] = WeakKeyDictionary()
        self._expected = CatalogView.load(artefacts / CATALOG_FILE) if artefacts is not None else None

    def __reduce__(self) -> Any:
        return _reopen, (self._given, self._options, self.tokens)

    def __repr__(self) -> str:
        return f"ServerSource({self.url!r})"

    def close(self) -> None:
        """Close the connections of synchronous calls."""
        run(self.aclose())

    async def aclose(self) -> None:
        """Close the connections of this event loop's calls."""
        client = self._clients.pop(asyncio.get_running_loop(), None)
        if client is not None:
            await client.aclose()

    def inspect(self, request: InspectionRequest, *, deadline: float) -> Reading:
        """See :class:`InspectionSource`."""
        return run(self.ainspect(request, deadline=deadline))

    async def ainspect(self, request: InspectionRequest, *, deadline: float) -> Reading:
        """See :class:`InspectionSource`."""
        body = _body(request, self.tokens)
        try:
            async with asyncio.timeout(deadline):
                async for attempt in AsyncRetrying(**_policy(deadline)):
                    with attempt:
                        return await self._ainspect(body, deadline)
        except TimeoutError as error:
            raise InspectionTimeout.after(deadline) from error
        raise AssertionError  # the loop returns or raises

    def inspect_batch(
        self, requests: Sequence[InspectionRequest], *, deadline: float, limit: int | None = None
    ) -> list[Outcome]:
        """See :class:`InspectionSource`. The server computes what arrives together in common batches."""
        return run(self.ainspect_batch(requests, deadline=deadline, limit=limit))

    async def ainspect_batch(
        self, requests: Sequence[InspectionRequest], *, deadline: float, limit: int | None = None
    ) -> list[Outcome]:
        """See :class:`InspectionSource`."""
        slots = asyncio.Semaphore(_at_once(requests, limit))
        end = time.monotonic() + deadline

        async def one(request: InspectionRequest) -> Outcome:
            async with slots:
                left = end - time.monotonic()
                if left <= 0:
                    return InspectionTimeout.after(deadline)
                try:
                    return await self.ainspect(request, deadline=left)
                except Exception as error:
                    return error

        return list(await asyncio.gather(*map(one, requests)))

    async def _ainspect(self, body: bytes, deadline: float) -> Reading:
        client = self._async_client()
        try:
            if self._expected is not None:
                self._check(await client.get(_HEALTH, timeout=deadline))
            headers = _JSON | tracing.outgoing()
            async with client.stream("POST", _ROUTE, content=body, headers=headers, timeout=deadline) as response:
                received = bytearray()
                async for piece in response.aiter_bytes():
                    received += piece
                    self._check_size(received)
                return _parse(response.status_code, bytes(received))
        except httpx.HTTPError as error:
            raise self._failure(error, deadline) from error

    def _async_client(self) -> httpx.AsyncClient:
        loop = asyncio.get_running_loop()
        if loop not in self._clients:
            for known in self._clients.keyrefs():  # a client holds its loop: without this, neither would ever go
                if (other := known()) is not None and other.is_closed():
                    self._clients.pop(other, None)
            self._clients[loop] = httpx.AsyncClient(base_url=self.url, headers=self._headers, auth=self._auth)
        return self._clients[loop]

    def _check_size(self, received: bytearray) -> None:
        if len(received) > _MAX_ANSWER:
            raise ServerError(f"{self.url} sent more than {_MAX_ANSWER} bytes.", "See the server's log.")

    def _check(self, response: httpx.Response) -> None:
        """Compare the server's fingerprints with those of the catalog that was given; once is enough."""
        expected = self._expected
        if expected is None:  # another thread has just compared them
            return
        if not response.is_success:
            raise _refusal(response.status_code, response.content)
        try:
            found = dict(response.json()["fingerprints"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ServerError(f"{self.url} does not say what it reads with.", "Start `sensecheck serve`.") from error
        if differing := [name for name, value in expected.fingerprints.items() if found.get(name) != value]:
            raise FingerprintError(
                f"The server at {self.url} reads with other artefacts than yours: {', '.join(differing)} differ.",
                "Serve the model and artefacts that your catalog belongs to.",
            )
        self._expected = None

    def _failure(self, error: httpx.HTTPError, deadline: float) -> ServerError | InspectionTimeout:
        if isinstance(error, httpx.TimeoutException):
            return InspectionTimeout.after(deadline)
        # What was never sent or never answered may be asked again: a reading changes nothing on the server.
        kind = UnavailableError if isinstance(error, httpx.TransportError) else ServerError
        return kind(f"No reading from {self.url}: {error}.", "Start it with `sensecheck serve`, or check the address.")


def _without_credentials(url: str) -> tuple[str, httpx.BasicAuth | None]:
    """The address as it may be shown and logged, and the user and password that stood in it, if any did."""
    found = re.fullmatch(r"([^/]*//)([^/]*)@(.*)", url)
    if not found:
        return url, None
    user, _, password = found[2].partition(":")
    return found[1] + found[3], httpx.BasicAuth(unquote(user), unquote(password))


def _reopen(url: str, options: dict[str, Any], tokens: bool) -> ServerSource:
    return ServerSource(url, tokens=tokens, **options)


def _policy(deadline: float) -> dict[str, Any]:
    """Tenacity's options: again after a short pause, only while the pause ends before the deadline."""
    return {
        "retry": retry_if_exception_type(UnavailableError),
        "wait": wait_random_exponential(multiplier=_FIRST_PAUSE, max=1.0),
        "stop": stop_before_delay(min(deadline, _LAST_TRY)),
        "reraise": True,
    }


def _at_once(requests: Sequence[InspectionRequest], limit: int | None) -> int:
    return max(1, min(len(requests), limit or _AT_ONCE))


def _body(request: InspectionRequest, tokens: bool) -> bytes:
    body: dict[str, Any] = {"messages": request.messages, "tokens": tokens, **request.options()}
    body["only"] = None if request.only is None else sorted(request.only)
    body["without"] = sorted(request.without) or None
    body["picks"] = dict(request.picks) or None
    body["glossary"] = None if request.glossary is None else request.glossary.model_dump(mode="json")
    try:
        return json.dumps(
            {name: value for name, value in body.items() if value is not None}, ensure_ascii=False
        ).encode()
    except UnicodeEncodeError as error:
        raise InputError(
            "The prompt holds half a Unicode character (a lone surrogate).", "Send whole characters."
        ) from error


def _parse(status: int, content: bytes) -> Reading:
    if not 200 <= status < 300:
        raise _refusal(status, content)
    try:
        return Reading.model_validate_json(content)
    except ValueError as error:
        raise ServerError("The server's answer is no reading.", _REMEDY) from error


def _refusal(status: int, content: bytes) -> SensecheckError:
    ours = False
    try:
        refusal = json.loads(content)["error"]
        detail, ours = str(refusal["message"]), refusal.get("type") == "sensecheck"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        detail = content[:200].decode("utf-8", errors="replace")
    kind = (
        InputError if status in (400, 413, 422) else UnavailableError if status in (429, 502, 503, 504) else ServerError
    )
    error = kind(f"The server answered {status}: {detail}.", _REMEDY)
    if not ours:  # vLLM's refusals quote what was wrong in a request, which may be the prompt
        error.quoted = detail
    return error
