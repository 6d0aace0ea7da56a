"""Readings for the server's routes: plan, features, verdict; bounded, counted, timed."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from sae_runtime.detector import Detector, Plan, Reading
from sae_runtime.engines.chat import ChatMessage
from sae_runtime.engines.features import PromptFeatures
from sae_runtime.errors import SensecheckError
from sae_runtime.glossary.cache import GlossaryCache
from sae_runtime.glossary.compile import plans, with_glossary
from sae_runtime.glossary.terms import Glossary
from sae_runtime.serving import metrics
from sae_runtime.serving.observer import Observer, Step, step, timed, verdict
from sae_runtime.serving.readers import Reader

logger = logging.getLogger("sensecheck")

MAX_CONCURRENT = 64
COMPILE_SECONDS = 10.0  # that a new catalog waits for the glossaries in use


class BusyError(SensecheckError):
    """More readings are under way than the server takes."""


@dataclass
class _InService:
    """The catalog's detector and what was compiled for it. Exchanged as a whole, so that two catalogs never mix."""

    detector: Detector
    glossaries: GlossaryCache = field(default_factory=GlossaryCache)
    compiling: dict[str, asyncio.Task[Detector]] = field(default_factory=dict)


class ReadingService:
    """Plans and judges on one thread of its own, so that the event loop goes on; the reader brings the features."""

    def __init__(self, detector: Detector, reader: Reader, observer: Observer | None = None) -> None:
        self._current = _InService(detector)
        self.observer = observer or Observer()
        self.reader = reader
        self.counters: Counter[str] = Counter()
        self._running = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sensecheck")  # tokenizers are not made for several

    @property
    def detector(self) -> Detector:
        """The detector of the catalog in service; what it has planned, it alone can judge."""
        return self._current.detector

    async def use(self, detector: Detector) -> None:
        """Read with ``detector`` from now on; readings that have begun end with the old one.

        The glossaries in use are compiled for it first, so that no prompt waits for them; but not for ever: those that are
        not ready after ``COMPILE_SECONDS`` are compiled when they are used next.
        """
        coming = _InService(detector)
        try:
            async with asyncio.timeout(COMPILE_SECONDS):
                for glossary in self._current.glossaries.known():
                    await self._compile_or_leave(coming, glossary)
        except TimeoutError:
            logger.warning(
                "glossaries that are not compiled after %.0f s will be when they are used next", COMPILE_SECONDS
            )
        self._current = coming

    async def _compile_or_leave(self, coming: _InService, glossary: Glossary) -> None:
        try:
            await self._compile(coming, glossary)
        except Exception as error:
            logger.warning("a glossary will be compiled when it is used next: %s", type(error).__name__)

    async def inspect(
        self, messages: Sequence[ChatMessage], *, glossary: Glossary | None = None, **options: Any
    ) -> Reading:
        """One reading; ``options`` are those of :meth:`Detector.plan`.

        Raises:
            BusyError: too many are under way.
            InputError: there is nothing to read.
            EngineError: activations could not be captured.
        """
        with self.observer.inspection("inspect", messages, options.get("domain")):
            return await self._inspect(messages, glossary, **options)

    async def _inspect(self, messages: Sequence[ChatMessage], glossary: Glossary | None, **options: Any) -> Reading:
        if self._running >= MAX_CONCURRENT:
            self.counters["refused"] += 1
            raise BusyError(f"{self._running} readings are under way.", "Try again in a moment.")
        self._running += 1
        marks = [time.perf_counter()]
        try:
            detector = await self.detector_for(glossary)
            plan = await self.plan(detector, messages, **options)
            marks.append(time.perf_counter())
            with step("read"):
                features = await self.reader.features(plan) if plan.needs_model else None
            marks.append(time.perf_counter())
            reading = await self.judge(detector, plan, features)
            marks.append(time.perf_counter())
        except Exception:
            self.counters["failed"] += 1
            raise
        finally:
            self._running -= 1
        return reading.timed(marks)

    async def detector_for(self, glossary: Glossary | None) -> Detector:
        """The detector that also knows the terms of ``glossary``; compiled when they are first seen."""
        current = self._current
        if glossary is None:
            return current.detector
        if (kept := current.glossaries.get(glossary)) is not None:
            return kept
        task = current.compiling.get(glossary.key)
        if task is None:
            task = current.compiling[glossary.key] = asyncio.create_task(self._compile(current, glossary))
            task.add_done_callback(lambda _: current.compiling.pop(glossary.key, None))
            task.add_done_callback(metrics.count_compile)
        with step("compile"):
            return await asyncio.shield(task)  # a client that gives up does not end it: the next one finds it done

    async def _compile(self, current: _InService, glossary: Glossary) -> Detector:
        planned = await self._off_loop(lambda: plans(current.detector, glossary))
        features = [await asyncio.gather(*map(self.reader.features, some)) for some in planned]
        detector = await self._off_loop(lambda: with_glossary(current.detector, glossary, planned, features))
        self.counters["glossaries"] += 1
        return current.glossaries.put(glossary, detector)

    async def plan(self, detector: Detector, messages: Sequence[ChatMessage], **options: Any) -> Plan:
        """See :meth:`Detector.plan`."""
        return await self._off_loop(lambda: detector.plan(messages, **options), "plan")

    async def judge(self, detector: Detector, plan: Plan, features: PromptFeatures | None) -> Reading:
        """See :meth:`Detector.reading`, of the detector that made the plan; counts the result."""
        reading = await self._off_loop(verdict(detector, plan, features), "judge")
        self.counters["inspected"] += 1
        self.counters["flagged"] += bool(reading.misreads)
        return reading

    async def _off_loop(self, call: Any, name: Step | None = None) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, timed(name, call))
