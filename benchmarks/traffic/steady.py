"""Steady traffic of every kind that a server knows, some of whose users leave before they are served."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from itertools import count, cycle
from time import perf_counter
from typing import Any, NamedTuple

import httpx

from benchmarks.traffic.chats import Turn, chats
from benchmarks.traffic.users import Line, Messages, Refused, Sample, ask
from middleware import SAEAnnotator

_CYCLE = ("one call", "two calls", "page", "one call", "two calls", "left while answered", "plain", "one call",
          "two calls", "feature", "left while read")  # fmt: skip
_AT_ONCE = 64  # requests under way; when the server falls behind, the next ones wait
_PATIENCE = 0.02  # seconds until somebody leaves who is being read


class Pace(NamedTuple):
    """``rate`` requests a second, but ``warm_up_rate`` in the first ``warm_up`` seconds."""

    rate: float
    warm_up: float
    warm_up_rate: float

    def due(self, number: int) -> float:
        """When request ``number`` is sent, in seconds after request 0."""
        early = self.warm_up * self.warm_up_rate
        return number / self.warm_up_rate if number < early else self.warm_up + (number - early) / self.rate


@dataclass
class Asked:
    """One request: what kind, when (seconds since the first one), how long, and what went wrong.

    Whoever left on purpose was served when the server had begun to.
    """

    kind: str
    at: float
    seconds: float
    error: str | None = None
    bypass: str | None = None


class Traffic:
    """Sends requests at a steady rate, whatever the answers take.

    Args:
        line: to the server.
        annotator: for the calls that read first.
        features: indices of catalogued features, for their pages.
        pace: when requests are sent.
        seed: of the conversations.
    """

    def __init__(self, line: Line, annotator: SAEAnnotator, features: list[int], pace: Pace, seed: int) -> None:
        self.asked: list[Asked] = []
        self._line, self._pace = line, pace
        self._features = cycle(features)
        self._turns = _turns(seed)
        self._numbers = count()
        self._kinds: dict[str, Callable[[Sample], Awaitable[object]]] = {
            "one call": lambda sample: self._talk(line.one_call, sample),
            "two calls": lambda sample: self._talk(line.two_calls(annotator), sample),
            "plain": lambda sample: self._talk(line.plain, sample),
            "page": lambda sample: self._page(),
            "feature": lambda sample: self._feature(),
            "left while answered": lambda sample: self._left_while_answered(),
            "left while read": lambda sample: self._left_while_read(),
        }

    async def run(self, seconds: float) -> None:
        """Send for ``seconds``, then wait for the last answers."""
        slots, began = asyncio.Semaphore(_AT_ONCE), perf_counter()

        async def one(kind: str) -> None:
            try:
                await self._one(kind, began)
            finally:
                slots.release()

        async with asyncio.TaskGroup() as group:
            for number, kind in enumerate(cycle(_CYCLE)):
                await asyncio.sleep(began + self._pace.due(number) - perf_counter())
                if perf_counter() - began >= seconds:
                    return
                await slots.acquire()
                group.create_task(one(kind))

    async def _one(self, kind: str, began: float) -> None:
        sample, start = Sample(), perf_counter()
        try:
            await self._kinds[kind](sample)
        except Refused as error:
            sample.error = str(error)
        except (httpx.HTTPError, TimeoutError) as error:
            sample.error = type(error).__name__
        self.asked.append(Asked(kind, start - began, perf_counter() - start, sample.error, sample.bypass))

    async def _talk(self, arm: Any, sample: Sample) -> None:
        await ask(arm, self._head(), next(self._turns), sample)

    async def _page(self) -> None:
        """What the chat page asks for: all tokens with all features."""
        turn = next(self._turns)
        body = {"messages": [*self._head(), {"role": "user", "content": turn.text}], "domain": turn.domain}
        _check(await self._line.http.post("/v1/sae/inspect", json=body))

    async def _feature(self) -> None:
        _check(await self._line.http.get(f"/v1/sae/features/{next(self._features)}"))

    async def _left_while_answered(self) -> None:
        turn = next(self._turns)
        messages = [*self._head(), {"role": "user", "content": turn.text}]
        async with contextlib.aclosing(self._line.events(messages, {"sensecheck": {"annotate": True}})) as events:
            await anext(events)

    async def _left_while_read(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE):
                await self._page()

    def _head(self) -> Messages:
        """Makes each conversation another one, so that the cache is filled and emptied."""
        return [{"role": "system", "content": f"Conversation {next(self._numbers)}. You are helpful."}]


def _turns(seed: int) -> Iterator[Turn]:
    for number in count():
        for chat in chats(50, seed + number):
            yield from chat.turns


def _check(response: httpx.Response) -> None:
    if response.status_code != httpx.codes.OK:
        raise Refused(f"status {response.status_code}")


def by_kind(asked: list[Asked]) -> list[dict[str, Any]]:
    """One row per kind of request: how many, how many unanswered and unread, how long."""
    rows = []
    for kind in dict.fromkeys(_CYCLE):
        some = [one for one in asked if one.kind == kind]
        if not some:
            continue
        errors = Counter(one.error for one in some if one.error)
        bypasses = Counter(one.bypass for one in some if one.bypass)
        seconds = sorted(one.seconds for one in some)
        rows.append({
            "kind": kind, "requests": len(some), "unanswered": errors.total(), "errors": _listed(errors),
            "bypassed": _listed(bypasses), "median ms": round(1e3 * seconds[len(seconds) // 2]),
            "longest ms": round(1e3 * seconds[-1]),
        })  # fmt: skip
    return rows


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{name}: {number}" for name, number in counts.most_common()) or "–"
