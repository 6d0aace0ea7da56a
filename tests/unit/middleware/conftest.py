"""Helpers of the middleware's unit tests: sources of readings without a model, a faulty server, one call for sync and async."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from asking import TEXT
from faulty_server import FaultyServer
from loopback import on_a_thread

from middleware import SAEAnnotator, ServerSource
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


@pytest.fixture
def fake() -> FakeInspector:
    """A source that misreads "bank"."""
    return FakeInspector({"bank": "River."})


@pytest.fixture
def annotator(fake: FakeInspector) -> SAEAnnotator:
    """An annotator that reads with :func:`fake`."""
    return SAEAnnotator(source=fake)


@pytest.fixture
def server(reading_of: Any, misread_at: Any) -> Iterator[FaultyServer]:
    """A server whose faults a test plans; without a fault it reads "bank" in ``TEXT``."""
    reading = reading_of([misread_at(TEXT, 7, 11, note="A note.")])
    with FaultyServer(reading.model_dump_json().encode()) as server, on_a_thread(server, server.end):
        yield server


@pytest.fixture
def source(server: FaultyServer) -> Iterator[ServerSource]:
    """Readings by :func:`server`."""
    with contextlib.closing(ServerSource(server.url)) as source:
        yield source


@pytest.fixture
def few_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give up on a busy server soon; how long it is asked is not what the test is about."""
    monkeypatch.setattr("middleware.sources.server._FIRST_PAUSE", 0.01)
    monkeypatch.setattr("middleware.sources.server._LAST_TRY", 0.05)


@pytest.fixture
def long_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask a busy server again even where this machine is slow."""
    monkeypatch.setattr("middleware.sources.server._FIRST_PAUSE", 0.25)
    monkeypatch.setattr("middleware.sources.server._LAST_TRY", 2.0)


@pytest.fixture(params=["sync", "async"])
def call(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """``call(target, "invoke", ...)``: the test runs with ``target.invoke(...)``, then with ``target.ainvoke(...)``."""

    def run(target: Any, method: str, *args: Any, **options: Any) -> Any:
        if request.param == "sync":
            return getattr(target, method)(*args, **options)
        return asyncio.run(getattr(target, "a" + method)(*args, **options))

    return run


@pytest.fixture(params=["sync", "async"])
def pieces(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """``pieces(target, value, ...)``: all chunks of ``target.stream(...)``, then of ``target.astream(...)``.

    ``each`` is called with every chunk as soon as it is there.
    """

    def run(target: Any, *args: Any, each: Callable[[Any], None] = lambda chunk: None, **options: Any) -> list[Any]:
        chunks = []

        def take(chunk: Any) -> None:
            each(chunk)
            chunks.append(chunk)

        async def gather() -> None:
            async for chunk in target.astream(*args, **options):
                take(chunk)

        if request.param == "async":
            asyncio.run(gather())
        else:
            for chunk in target.stream(*args, **options):
                take(chunk)
        return chunks

    return run
