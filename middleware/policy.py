"""The failure policy: one deadline, a circuit breaker, and counters that make every bypass visible."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from purgatory import SyncCircuitBreakerFactory
from purgatory.domain.model import OpenedState

from sae_runtime.errors import CircuitOpenError, InputError, InspectionTimeout, SensecheckError

logger = logging.getLogger("sensecheck")

BREAKER_FAILURES = 5
BREAKER_SECONDS = 30.0


@dataclass
class Stats:
    """Counters since the annotator was made. ``bypassed`` counts by reason."""

    inspected: int = 0
    flagged: int = 0
    bypassed: Counter[str] = field(default_factory=Counter)


class FailurePolicy:
    """Guards inspections: after five failures in a row none is tried for 30 s. Safe to share between threads."""

    def __init__(self) -> None:
        # Bad input is the caller's fault, a cancelled call the client's; neither tells of the source's health.
        cancelled = (BaseException, lambda error: not isinstance(error, Exception))
        self._breakers = SyncCircuitBreakerFactory(BREAKER_FAILURES, BREAKER_SECONDS, exclude=[InputError, cancelled])
        self._lock = threading.Lock()
        self.stats = Stats()

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Run one inspection; its failure is counted by the breaker.

        Raises:
            CircuitOpenError: the circuit is open and nothing was tried.
        """
        with self._lock:  # purgatory's state is not made for several threads
            breaker = self._breakers.get_breaker("inspection")
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
                breaker.__exit__(type(error), error, error.__traceback__)
            raise
        with self._lock:
            breaker.__exit__(None, None, None)

    def count_reading(self, *, flagged: bool) -> None:
        """Count a reading that succeeded."""
        with self._lock:
            self.stats.inspected += 1
            self.stats.flagged += flagged

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
        logger.warning("inspection bypassed (%s): %s", reason, error if isinstance(error, SensecheckError) else reason)
        return reason
