"""Helpers of the middleware's unit tests: a source of readings that needs no model, and one call for sync and async."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any

import pytest

from sae_runtime.detector.results import Misread, Reading
from sae_runtime.engines.chat import ChatMessage

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
        then: may be changed at any time, to break or to heal the source.
    """

    def __init__(self, *outcomes: BaseException | None, then: BaseException | None = None) -> None:
        self.outcomes = list(outcomes)
        self.then = then
        self.calls: list[dict[str, Any]] = []

    def inspect(self, messages: list[ChatMessage], *, domain: str | None, read: list[int], deadline: float) -> Reading:
        """Flag the words of ``NOTES`` in the messages numbered ``read``, or raise what was asked for."""
        self.calls.append({"messages": messages, "domain": domain, "read": read, "deadline": deadline})
        error = self.outcomes.pop(0) if self.outcomes else self.then
        if error is not None:
            raise error
        return build_reading(
            [
                build_misread(messages[index]["content"], *match.span(), message=index)
                for index in read
                for match in re.finditer(rf"\b({'|'.join(NOTES)})\b", messages[index]["content"])
            ]
        )

    async def ainspect(
        self, messages: list[ChatMessage], *, domain: str | None, read: list[int], deadline: float
    ) -> Reading:
        """Like :meth:`inspect`, after giving way to the event loop once."""
        await asyncio.sleep(0)
        return self.inspect(messages, domain=domain, read=read, deadline=deadline)


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
