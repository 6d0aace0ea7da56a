"""Helpers of the middleware's unit tests: a source of readings that needs no model, and one call for sync and async."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from middleware.testing import FakeInspector
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


class ScriptedSource(FakeInspector):
    """The words in ``NOTES`` are always misread; ``outcomes`` are what the first readings do.

    Attributes:
        calls: the arguments of each reading, failed ones included.
    """

    def __init__(self, *outcomes: BaseException | None, then: BaseException | None = None) -> None:
        super().__init__(NOTES, outcomes=outcomes, then=then)

    @property
    def calls(self) -> list[dict[str, Any]]:
        return [
            {"messages": request.messages, **request.options(), "deadline": deadline}
            for request, deadline in zip(self.requests, self.deadlines, strict=True)
        ]


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
