"""Bounds and counters of the server's readings."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from sae_runtime.detector import Reading
from sae_runtime.errors import EngineError, InputError
from sae_runtime.serving.readers import SidecarReader
from sae_runtime.serving.service import MAX_CONCURRENT, BusyError, ReadingService

READING = Reading(model="tiny", mentions=[], misreads=[], tokens=[], truncated=False)


class ScriptedDetector:
    """Plans what it is told; an empty conversation is an input error."""

    def __init__(self, *, needs_model: bool = True) -> None:
        self.needs_model = needs_model

    def plan(self, messages: Any, **options: Any) -> Any:
        if not messages:
            raise InputError("Nothing to read.")
        return SimpleNamespace(needs_model=self.needs_model, mentions=[], chat=SimpleNamespace(token_ids=[1, 2]))

    def reading(self, plan: Any, features: Any) -> Reading:
        return READING


class WaitingReader:
    """Brings features when ``release`` is set, or raises ``error``."""

    def __init__(self) -> None:
        self.release = asyncio.Event()
        self.error: Exception | None = None
        self.calls = 0

    async def features(self, plan: Any) -> Any:
        self.calls += 1
        await self.release.wait()
        if self.error:
            raise self.error
        return object()


def inspect(service: ReadingService, messages: Any = ("hello",)) -> Any:
    return service.inspect(messages, domain=None, read=None, tokens=False)


async def test_clients_that_leave_a_sidecar_leave_no_more_forward_passes_than_it_has_slots() -> None:
    """A forward pass cannot be stopped: whoever comes next waits for it, and those who left while they waited are not read."""
    release, running, most = threading.Event(), [], []

    def features(plans: Any) -> Any:
        running.append(plans)
        most.append(len(running))
        release.wait(30)
        running.remove(plans)
        return plans

    reader = SidecarReader(SimpleNamespace(features=features))  # type: ignore[arg-type]
    for number in range(8):
        leaving = asyncio.create_task(reader.features(number))  # type: ignore[arg-type]
        await asyncio.sleep(0.01)
        leaving.cancel()
    last = asyncio.create_task(reader.features(8))  # type: ignore[arg-type]
    await asyncio.sleep(0.05)
    release.set()
    assert await last == 8
    assert max(most) == 2
    assert len(most) == 3  # two that had begun, and the one that stayed


async def test_a_reading_is_timed_and_counted() -> None:
    reader = WaitingReader()
    reader.release.set()
    service = ReadingService(ScriptedDetector(), reader)  # type: ignore[arg-type]
    reading = await inspect(service)
    assert set(reading.timings_ms) == {"plan", "features", "detect", "total"}
    assert service.counters == {"inspected": 1, "flagged": 0}


async def test_what_needs_no_model_does_not_ask_for_features() -> None:
    reader = WaitingReader()
    service = ReadingService(ScriptedDetector(needs_model=False), reader)  # type: ignore[arg-type]
    await inspect(service)
    assert reader.calls == 0


async def test_more_readings_than_allowed_are_refused_and_the_rest_goes_on() -> None:
    reader = WaitingReader()
    service = ReadingService(ScriptedDetector(), reader)  # type: ignore[arg-type]
    running = [asyncio.create_task(inspect(service)) for _ in range(MAX_CONCURRENT)]
    while reader.calls < MAX_CONCURRENT:
        await asyncio.sleep(0)
    with pytest.raises(BusyError):
        await inspect(service)
    reader.release.set()
    await asyncio.gather(*running)
    await inspect(service)
    assert service.counters == {"inspected": MAX_CONCURRENT + 1, "flagged": 0, "refused": 1}


@pytest.mark.parametrize("error", [EngineError("Broken."), RuntimeError("boom")], ids=repr)
async def test_a_failure_is_counted_and_frees_its_place(error: Exception) -> None:
    reader = WaitingReader()
    reader.release.set()
    reader.error = error
    service = ReadingService(ScriptedDetector(), reader)  # type: ignore[arg-type]
    for _ in range(MAX_CONCURRENT + 1):
        with pytest.raises(type(error)):
            await inspect(service)
    with pytest.raises(InputError):
        await inspect(service, ())
    assert service.counters == {"failed": MAX_CONCURRENT + 2}


async def test_a_cancelled_reading_frees_its_place() -> None:
    reader = WaitingReader()
    service = ReadingService(ScriptedDetector(), reader)  # type: ignore[arg-type]
    for _ in range(MAX_CONCURRENT + 1):
        task = asyncio.create_task(inspect(service))
        while not reader.calls:
            await asyncio.sleep(0)
        reader.calls = 0
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    reader.release.set()
    assert await inspect(service)
