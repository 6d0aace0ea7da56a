"""The failure policy: a deadline, a circuit breaker, and counters that make every bypass visible."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from purgatory import SyncCircuitBreakerFactory
from purgatory.domain.model import OPENED, OpenedState

from middleware.metrics import METRICS
from sae_runtime.detector import Reading
from sae_runtime.errors import CircuitOpenError, InputError, InspectionTimeout, SensecheckError

logger = logging.getLogger("sensecheck")

BREAKER_FAILURES = 5
BREAKER_SECONDS = 30.0
_PREFILLS = 32  # readings that say how long the model takes to compute a prompt
_ENOUGH = 3  # of them, before which the ceiling alone holds


@dataclass
class Stats:
    """Counters since the annotator was made. ``bypassed`` counts by reason."""

    inspected: int = 0
    flagged: int = 0
    bypassed: Counter[str] = field(default_factory=Counter)


class FailurePolicy:
    """Guards inspections: after five failures in a row none is tried for 30 s. Safe to share between threads.

    Each source of readings, known by its name, has a circuit and a learnt time of its own. A copy or a pickle begins with
    closed circuits and counters at zero.
    """

    def __init__(self) -> None:
        # Bad input is the caller's fault, a cancelled call the client's; neither tells of the source's health.
        cancelled = (BaseException, lambda error: not isinstance(error, Exception))
        self._breakers = SyncCircuitBreakerFactory(BREAKER_FAILURES, BREAKER_SECONDS, exclude=[InputError, cancelled])
        self._lock = threading.Lock()
        self._prefills: defaultdict[str, deque[tuple[int, float]]] = defaultdict(lambda: deque(maxlen=_PREFILLS))
        self._opened: dict[str, float] = {}  # when circuits were opened
        self.stats = Stats()

    def __reduce__(self) -> Any:
        return FailurePolicy, ()

    @contextmanager
    def guard(self, source: str = "") -> Iterator[None]:
        """Run one inspection by a source; its failure is counted by the breaker.

        Raises:
            CircuitOpenError: the circuit is open and nothing was tried.
        """
        with self._lock:  # purgatory's state is not made for several threads
            breaker = self._breakers.get_breaker(f"source {source}")
            if breaker.context.state == OPENED:
                # purgatory measures the pause by the wall clock, which may jump; it has no other way to be told.
                breaker.context._state.opened_at = time.time() - (time.monotonic() - self._opened[source])
            try:
                breaker.__enter__()
            except OpenedState:
                raise CircuitOpenError(
                    f"Readings failed {BREAKER_FAILURES} times in a row and are suspended for {BREAKER_SECONDS:.0f} s.",
                    "See the log for the failures; the prompt went on unread.",
                ) from None
        try:
            yield
        except BaseException as error:
            with self._lock:
                before = breaker.context.state
                breaker.__exit__(type(error), error, error.__traceback__)
                if before != OPENED == breaker.context.state:
                    self._opened[source] = time.monotonic()
            raise
        with self._lock:
            breaker.__exit__(None, None, None)

    def deadline(self, characters: Iterable[int], ceiling: float, grace: float | None, source: str = "") -> float:
        """Seconds that a source's reading may take: the model's own time for such prompts, and ``grace`` beyond.

        The model's time is that of the slowest of the last readings, in proportion for more text than any of them had. The
        ceiling holds at any time; alone when ``grace`` is None, and until a few readings have shown how fast the model is.
        """
        with self._lock:
            prefills = self._prefills[source]
            if grace is None or len(prefills) < _ENOUGH:
                return ceiling
            longest = max(1, max(size for size, _ in prefills))
            slowest = max(seconds for _, seconds in prefills)
        return min(ceiling, grace + slowest * max(1.0, sum(characters) / longest))

    def count_reading(self, reading: Reading, characters: int, source: str = "") -> None:
        """Count a reading that succeeded."""
        with self._lock:
            self.stats.inspected += 1
            self.stats.flagged += bool(reading.misreads)
            if "features" in reading.timings_ms and reading.mentions:  # without a mention the model was not asked
                self._prefills[source].append((characters, reading.timings_ms["features"] / 1e3))
        METRICS.count_reading(reading)

    def count_bypass(self, error: Exception) -> str:
        """Count and log a bypass; returns its reason."""
        if isinstance(error, CircuitOpenError):
            reason = "circuit open"
        elif isinstance(error, InspectionTimeout):
            reason = "timeout"
        else:
            reason = type(error).__name__
        with self._lock:
            self.stats.bypassed[reason] += 1
        METRICS.count_bypass(reason)
        words = error.unquoted() if isinstance(error, SensecheckError) else reason
        logger.warning("inspection bypassed (%s): %s", reason, words)
        return reason
