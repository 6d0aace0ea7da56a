"""Readings for the server's routes: plan, features, verdict; bounded, counted, timed."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from sae_runtime.detector import Detector, Plan, Reading
from sae_runtime.engines.chat import ChatMessage
from sae_runtime.engines.features import PromptFeatures
from sae_runtime.errors import SensecheckError
from sae_runtime.glossary.cache import GlossaryCache
from sae_runtime.glossary.compile import plans, with_glossary
from sae_runtime.glossary.terms import Glossary
from sae_runtime.serving.readers import Reader

MAX_CONCURRENT = 64


class BusyError(SensecheckError):
    """More readings are under way than the server takes."""


class ReadingService:
    """Plans and judges on one thread of its own, so that the event loop goes on; the reader brings the features."""

    def __init__(self, detector: Detector, reader: Reader) -> None:
        self.detector = detector
        self.reader = reader
        self.counters: Counter[str] = Counter()
        self._running = 0
        self._glossaries = GlossaryCache()
        self._compiling: dict[str, asyncio.Task[Detector]] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sensecheck")  # tokenizers are not made for several

    async def inspect(
        self, messages: Sequence[ChatMessage], *, glossary: Glossary | None = None, **options: Any
    ) -> Reading:
        """One reading; ``options`` are those of :meth:`Detector.plan`.

        Raises:
            BusyError: too many are under way.
            InputError: there is nothing to read.
            EngineError: activations could not be captured.
        """
        if self._running >= MAX_CONCURRENT:
            self.counters["refused"] += 1
            raise BusyError(f"{self._running} readings are under way.", "Try again in a moment.")
        self._running += 1
        marks = [time.perf_counter()]
        try:
            detector = await self.detector_for(glossary)
            plan = await self._off_loop(lambda: detector.plan(messages, **options))
            marks.append(time.perf_counter())
            features = await self.reader.features(plan) if plan.needs_model else None
            marks.append(time.perf_counter())
            reading = await self.judge(plan, features, detector)
            marks.append(time.perf_counter())
        except Exception:
            self.counters["failed"] += 1
            raise
        finally:
            self._running -= 1
        return reading.timed(marks)

    async def detector_for(self, glossary: Glossary | None) -> Detector:
        """The detector that also knows the terms of ``glossary``; compiled when they are first seen."""
        if glossary is None:
            return self.detector
        if (kept := self._glossaries.get(glossary)) is not None:
            return kept
        task = self._compiling.get(glossary.key)
        if task is None:
            task = self._compiling[glossary.key] = asyncio.create_task(self._compile(glossary))
            task.add_done_callback(lambda _: self._compiling.pop(glossary.key, None))
        return await asyncio.shield(task)  # a client that gives up does not end it: the next one finds it done

    async def _compile(self, glossary: Glossary) -> Detector:
        planned = await self._off_loop(lambda: plans(self.detector, glossary))
        features = [await asyncio.gather(*map(self.reader.features, some)) for some in planned]
        detector = await self._off_loop(lambda: with_glossary(self.detector, glossary, planned, features))
        self.counters["glossaries"] += 1
        return self._glossaries.put(glossary, detector)

    async def plan(self, messages: Sequence[ChatMessage], **options: Any) -> Plan:
        """See :meth:`Detector.plan`."""
        return await self._off_loop(lambda: self.detector.plan(messages, **options))

    async def judge(self, plan: Plan, features: PromptFeatures | None, detector: Detector | None = None) -> Reading:
        """See :meth:`Detector.reading`; counts the result."""
        reading = await self._off_loop(lambda: (detector or self.detector).reading(plan, features))
        self.counters["inspected"] += 1
        self.counters["flagged"] += bool(reading.misreads)
        return reading

    async def _off_loop(self, call: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)
