"""The clock: callbacks in order of time."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any


class Clock:
    """Simulated seconds. Callbacks of the same moment run in the order in which they were asked for."""

    def __init__(self) -> None:
        self.now = 0.0
        self.events = 0
        self._queue: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._count = 0

    def after(self, seconds: float, call: Callable[..., None], *arguments: Any) -> None:
        """Call ``call(*arguments)`` after so many seconds."""
        self.at(self.now + seconds, call, *arguments)

    def at(self, time: float, call: Callable[..., None], *arguments: Any) -> None:
        """Call ``call(*arguments)`` at ``time``, which is not past."""
        self._count += 1
        heapq.heappush(self._queue, (time, self._count, call, arguments))

    def run(self, until: float) -> None:
        """Run all callbacks up to ``until``; the clock then stands there."""
        queue = self._queue
        while queue and queue[0][0] <= until:
            self.now, _, call, arguments = heapq.heappop(queue)
            self.events += 1
            call(*arguments)
        self.now = until
