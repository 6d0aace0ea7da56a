"""A server: one event loop for all requests, one thread for readings, one engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.fleet.clock import Clock
from benchmarks.fleet.costs import Costs
from benchmarks.fleet.engine import Engine, Sequence

MAX_READINGS = 64  # at once, per server; more are refused (sae_runtime.serving.service)


@dataclass(frozen=True)
class ReplicaOptions:
    """How a server is started: vLLM's defaults on a CPU. ``capacity``: tokens that 1 GB of cache holds, small model."""

    budget: int = 2_048
    slots: int = 128
    capacity: int = 40_000


class Worker:
    """Does one thing after the other."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._free = 0.0

    def run(self, seconds: float, call: Callable[..., None], *arguments: Any) -> None:
        """Call when ``seconds`` of work are done, behind all that was asked for before."""
        self._free = max(self._free, self._clock.now) + seconds
        self._clock.at(self._free, call, *arguments)


class Replica:
    """A server that is up or down. Whatever was under way when it goes down is told so, and never called again.

    Attributes:
        open: whether new requests are sent here; a replica that is being drained is up, but not open.
        alive: whether it answers at all.
        load: requests under way.
        readings: readings under way.
    """

    def __init__(self, clock: Clock, costs: Costs, options: ReplicaOptions) -> None:
        self._clock, self._costs = clock, costs
        self.engine = Engine(clock, costs.engine, budget=options.budget, slots=options.slots, capacity=options.capacity)
        self.alive = self.open = True
        self.load = self.readings = 0
        self._loop, self._thread = Worker(clock), Worker(clock)
        self._visits: set[Visit] = set()

    def enter(self, lost: Callable[[], None]) -> Visit:
        """A request begins; ``lost`` is called if the replica dies before it leaves."""
        visit = Visit(self, lost)
        self._visits.add(visit)
        self.load += 1
        return visit

    def leave(self, visit: Visit) -> None:
        """A request is over."""
        if visit in self._visits:
            self._visits.remove(visit)
            self.load -= 1

    def request(self, visit: Visit, call: Callable[..., None], *arguments: Any) -> None:
        """The event loop takes a request on its way into the engine."""
        self._loop.run(self._costs.engine.request, visit.guarded(call), *arguments)

    def plan(self, visit: Visit, tokens: int, call: Callable[[], None]) -> None:
        """The reading thread finds the mentions."""
        self._thread.run(self._costs.reading.plan(tokens), visit.guarded(call))

    def judge(self, visit: Visit, tokens: int, call: Callable[[], None]) -> None:
        """The reading thread judges them."""
        self._thread.run(self._costs.reading.judge(tokens), visit.guarded(call))

    def die(self) -> None:
        """Stop at once: every request is lost, the cache is empty, readings end."""
        self.alive = self.open = False
        self.engine.reset()
        visits, self._visits = self._visits, set()
        self.load = self.readings = 0
        self._loop, self._thread = Worker(self._clock), Worker(self._clock)
        for visit in sorted(visits, key=lambda visit: visit.number):
            visit.lose()

    def start(self) -> None:
        """Answer again."""
        self.alive = self.open = True


class Visit:
    """A request at a replica."""

    _numbers = iter(range(10**12))

    def __init__(self, replica: Replica, lost: Callable[[], None]) -> None:
        self.replica = replica
        self.number = next(Visit._numbers)
        self.over = False
        self._lost = lost
        self._sequences: list[Sequence] = []

    def guarded(self, call: Callable[..., None]) -> Callable[..., None]:
        """``call``, unless the request is over by then."""

        def guarded(*arguments: Any) -> None:
            if not self.over:
                call(*arguments)

        return guarded

    def compute(self, sequence: Sequence) -> None:
        """Hand a sequence to the engine."""
        self._sequences.append(sequence)
        self.replica.engine.submit(sequence)

    def leave(self) -> None:
        """The request is over; what is still computed for it is stopped."""
        self.over = True
        for sequence in self._sequences:
            if not sequence.ended:
                self.replica.engine.abort(sequence)
        self.replica.leave(self)

    def lose(self) -> None:
        """The replica died."""
        self.over = True
        self._lost()
