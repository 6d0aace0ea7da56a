"""Helpers of the middleware's unit tests: a source of readings that needs no model, and one call for sync and async."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from middleware.sources import InspectionRequest, Outcome
from sae_runtime.detector.results import Misread, Reading

RIVER_NOTE = '"bank" is the edge of a river here.'
COIL_NOTE = '"spring" is a coil of metal here.'
NOTES = {"bank": RIVER_NOTE, "spring": COIL_NOTE}


def build_misread(text: str, start: int, end: int, *, message: int = 0, note: str | None = None) -> Misread:
    """A misread of ``text[start:end]``; ``note`` defaults to the one for that word."""
    words = text[start:end]
    return Misread(
        concept=words, text=words, message=message, start=start, end=end, read_as="usual", intended="other",
        p_read_as=0.9, p_intended=0.95, evidence=["test"], note=NOTES[words] if note is None else note, features=[],
    )  # fmt: skip


def build_reading(misreads: list[Misread]) -> Reading:
    """A reading that holds nothing but ``misreads``."""
    return Reading(
        model="scripted", mentions=[], misreads=misreads, tokens=[], truncated=False, timings_ms={"total": 1.0}
    )


class ScriptedSource:
    """An :class:`middleware.InspectionSource` without a model: the words in ``NOTES`` are always misread.

    Args:
        outcomes: what the first readings do, one each: an exception is raised, None means success.
        then: raised by every reading after those; None means success.

    Attributes:
        calls: the arguments of each reading, failed ones included.
        batches: size and limit of each batch.
        then: may be changed at any time, to break or to heal the source.
    """

    def __init__(self, *outcomes: BaseException | None, then: BaseException | None = None) -> None:
        self.outcomes = list(outcomes)
        self.then = then
        self.calls: list[dict[str, Any]] = []
        self.batches: list[tuple[int, int | None]] = []

    def inspect(self, request: InspectionRequest, *, deadline: float) -> Reading:
        """Flag the words of ``NOTES`` in the messages to be read, or raise what was asked for."""
        self.calls.append({"messages": request.messages, **request.options(), "deadline": deadline})
        error = self.outcomes.pop(0) if self.outcomes else self.then
        if error is not None:
            raise error
        return build_reading(
            [
                build_misread(request.messages[index]["content"], *match.span(), message=index)
                for index in request.read
                for match in re.finditer(rf"\b({'|'.join(NOTES)})\b", request.messages[index]["content"])
            ]
        )

    async def ainspect(self, request: InspectionRequest, *, deadline: float) -> Reading:
        """Like :meth:`inspect`, after giving way to the event loop once."""
        await asyncio.sleep(0)
        return self.inspect(request, deadline=deadline)

    def inspect_batch(
        self, requests: Sequence[InspectionRequest], *, deadline: float, limit: int | None = None
    ) -> list[Outcome]:
        """One reading after the other; the batch itself is noted in ``batches``."""
        self.batches.append((len(requests), limit))
        results: list[Outcome] = []
        for request in requests:
            try:
                results.append(self.inspect(request, deadline=deadline))
            except Exception as error:
                results.append(error)
        return results

    async def ainspect_batch(
        self, requests: Sequence[InspectionRequest], *, deadline: float, limit: int | None = None
    ) -> list[Outcome]:
        """Like :meth:`inspect_batch`, after giving way to the event loop once."""
        await asyncio.sleep(0)
        return self.inspect_batch(requests, deadline=deadline, limit=limit)


@pytest.fixture(scope="session")
def scripted() -> type[ScriptedSource]:
    """The class :class:`ScriptedSource`."""
    return ScriptedSource


@pytest.fixture(scope="session")
def misread_at() -> Callable[..., Misread]:
    """The function :func:`build_misread`."""
    return build_misread


@pytest.fixture(scope="session")
def reading_of() -> Callable[[list[Misread]], Reading]:
    """The function :func:`build_reading`."""
    return build_reading


@pytest.fixture(params=["sync", "async"])
def call(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """``call(target, "invoke", ...)``: the test runs with ``target.invoke(...)``, then with ``target.ainvoke(...)``."""

    def run(target: Any, method: str, *args: Any, **options: Any) -> Any:
        if request.param == "sync":
            return getattr(target, method)(*args, **options)
        return asyncio.run(getattr(target, "a" + method)(*args, **options))

    return run
