"""Readings in this process: deadlines, worker threads and errors. The inspector waits as long as it is told."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from middleware import CatalogSource, InspectionRequest, InspectionSource, SAEAnnotator
from sae_runtime.catalog.location import catalog_location
from sae_runtime.detector import Inspector, Reading
from sae_runtime.errors import EngineError, InputError, InspectionTimeout

Call = Callable[..., Any]

PATIENCE = 30.0  # seconds; only a broken product waits that long
MESSAGES = [{"role": "user", "content": "I sat on the bank."}]
WORKERS = 4


class WaitingInspector:
    """Stands in for an Inspector: every reading but those of ``at_once`` waits until ``release`` is set.

    Attributes:
        started: released once per reading that has begun.
        calls: the arguments of the readings that have begun.
        error: raised instead of an answer.
    """

    def __init__(self, reading: Reading) -> None:
        self.reading = reading
        self.release = threading.Event()
        self.started = threading.Semaphore(0)
        self.calls: list[tuple[Any, str | None, list[int]]] = []
        self.at_once: set[str] = set()
        self.error: Exception | None = None
        self.opened = None

    def inspect(self, messages: Any, *, domain: str | None, read: list[int], tokens: bool, **scope: Any) -> Reading:
        assert not tokens
        self.calls.append((messages, domain, read))
        self.started.release()
        if messages[0]["content"] not in self.at_once:
            self.release.wait(PATIENCE)
        if self.error:
            raise self.error
        return self.reading


@pytest.fixture
def inspector(reading_of: Any) -> Iterator[WaitingInspector]:
    inspector = WaitingInspector(reading_of([]))
    yield inspector
    inspector.release.set()


@pytest.fixture
def source(inspector: WaitingInspector) -> Iterator[CatalogSource]:
    source = CatalogSource(inspector)  # type: ignore[arg-type]
    yield source
    inspector.release.set()
    source._pool.shutdown()


def read(call: Call, source: CatalogSource, text: str = MESSAGES[0]["content"], deadline: float = PATIENCE) -> Reading:
    return call(source, "inspect", InspectionRequest([{"role": "user", "content": text}], [0]), deadline=deadline)


def test_it_is_an_inspection_source(source: CatalogSource) -> None:
    assert isinstance(source, InspectionSource)


def test_the_inspector_gets_the_conversation(source: CatalogSource, inspector: WaitingInspector, call: Call) -> None:
    inspector.release.set()
    reading = call(source, "inspect", InspectionRequest(MESSAGES, [0], domain="rivers"), deadline=PATIENCE)
    assert reading is inspector.reading
    assert inspector.calls == [(MESSAGES, "rivers", [0])]


def test_a_missed_deadline_is_an_inspection_timeout(
    source: CatalogSource, inspector: WaitingInspector, call: Call
) -> None:
    with pytest.raises(InspectionTimeout, match=r"longer than 0\.02 s") as caught:
        read(call, source, deadline=0.02)
    assert "deadline" in caught.value.remedy
    assert not inspector.release.is_set()


def test_a_late_reading_does_not_hold_up_the_next(
    source: CatalogSource, inspector: WaitingInspector, call: Call
) -> None:
    inspector.at_once.add("quick")
    with pytest.raises(InspectionTimeout):
        read(call, source, "slow", deadline=0.02)
    assert read(call, source, "quick") is inspector.reading


def test_readings_that_wait_for_a_thread_are_given_up_at_their_deadline(
    source: CatalogSource, inspector: WaitingInspector, call: Call
) -> None:
    busy = [
        source._pool.submit(inspector.inspect, MESSAGES, domain=None, read=[0], tokens=False) for _ in range(WORKERS)
    ]
    for _ in busy:
        assert inspector.started.acquire(timeout=PATIENCE)
    with pytest.raises(InspectionTimeout):
        read(call, source, "queued", deadline=0.02)
    inspector.release.set()
    source._pool.shutdown()
    assert all(future.result(0) is inspector.reading for future in busy)
    assert [messages[0]["content"] for messages, _, _ in inspector.calls] == [MESSAGES[0]["content"]] * WORKERS


@pytest.mark.parametrize("error", [InputError("Empty."), EngineError("Broken."), RuntimeError("boom")], ids=repr)
def test_errors_of_the_inspector_come_through(
    source: CatalogSource, inspector: WaitingInspector, call: Call, error: Exception
) -> None:
    inspector.error = error
    inspector.release.set()
    with pytest.raises(type(error)) as caught:
        read(call, source)
    assert caught.value is error


async def test_ainspect_leaves_the_event_loop_free(source: CatalogSource, inspector: WaitingInspector) -> None:
    task = asyncio.create_task(source.ainspect(InspectionRequest(MESSAGES, [0]), deadline=PATIENCE))
    assert await asyncio.to_thread(inspector.started.acquire, timeout=PATIENCE)
    assert not task.done()
    inspector.release.set()
    assert await task is inspector.reading


async def test_several_readings_run_at_once(source: CatalogSource, inspector: WaitingInspector) -> None:
    request = InspectionRequest(MESSAGES, [0])
    tasks = [asyncio.create_task(source.ainspect(request, deadline=PATIENCE)) for _ in range(WORKERS)]
    for _ in tasks:  # all have begun although none has ended
        assert await asyncio.to_thread(inspector.started.acquire, timeout=PATIENCE)
    inspector.release.set()
    assert await asyncio.gather(*tasks) == [inspector.reading] * WORKERS


async def test_a_cancelled_call_stays_cancelled(source: CatalogSource, inspector: WaitingInspector) -> None:
    task = asyncio.create_task(source.ainspect(InspectionRequest(MESSAGES, [0]), deadline=PATIENCE))
    assert await asyncio.to_thread(inspector.started.acquire, timeout=PATIENCE)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    inspector.release.set()
    assert await source.ainspect(InspectionRequest(MESSAGES, [0]), deadline=PATIENCE) is inspector.reading


def test_the_annotator_passes_the_prompt_on_when_the_deadline_is_missed(source: CatalogSource, call: Call) -> None:
    annotator = SAEAnnotator(source=source, deadline=0.02)
    result = call(annotator, "annotate", MESSAGES[0]["content"])
    assert [message.content for message in result.messages] == [MESSAGES[0]["content"]]
    assert result.bypass == "timeout"
    assert annotator.stats.bypassed == {"timeout": 1}


def test_open_and_from_catalog_hand_their_options_to_the_inspector(
    inspector: WaitingInspector, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def from_model(*args: Any, **options: Any) -> WaitingInspector:
        opened.append((args, options))
        return inspector

    monkeypatch.setattr(Inspector, "from_model", from_model)
    folder, url = Path("artefacts"), "postgresql://reader:secret@host/senses"
    source = CatalogSource.open("a-model", artefacts=folder, catalog=url, device="cuda")
    annotator = SAEAnnotator.from_catalog(
        "a-model", artefacts=folder, catalog=url, device="cuda", placement="inline", domain="rivers"
    )
    assert opened == [(("a-model",), {"artefacts": folder, "catalog": catalog_location(url), "device": "cuda"})] * 2
    assert "secret" not in repr(opened)
    assert source.inspector is inspector
    assert isinstance(annotator.source, CatalogSource)
    assert (annotator.placement, annotator.domain) == ("inline", "rivers")
