"""Replicas behind a load balancer; some fail, some are updated."""

from __future__ import annotations

import random
from dataclasses import dataclass

from benchmarks.fleet.clock import Clock
from benchmarks.fleet.costs import Costs
from benchmarks.fleet.replica import Replica, ReplicaOptions

_SPARE = 4  # requests that a chat's own replica may have more than twice those of another
CHECK_SECONDS = 1.0  # until the balancer notices that a replica is down or up again


@dataclass(frozen=True)
class FleetOptions:
    """A fleet.

    Attributes:
        replicas: how many.
        sticky: send a chat's requests to the replica that had its last one, unless that is much busier than another.
        failures: seconds between failures of one replica, on average; None: none fail.
        restart: seconds from the start of a server to its first answer (measured: 25 to 45 s).
        update: when a rolling update begins; None: never.
        at_once: share of the replicas that are updated together.
        drain: seconds that a replica may go on with what it has before it is restarted.
    """

    replicas: int = 1
    sticky: bool = True
    failures: float | None = None
    restart: float = 45.0
    update: float | None = None
    at_once: float = 0.05
    drain: float = 30.0


class Fleet:
    """Sends each request to a replica."""

    def __init__(self, clock: Clock, costs: Costs, options: FleetOptions, replica: ReplicaOptions, seed: int) -> None:
        self._clock, self._options = clock, options
        self._draws, self._fate = (
            random.Random(seed),
            random.Random(seed + 1),
        )  # more requests must not mean other failures
        self.replicas = [Replica(clock, costs, replica) for _ in range(options.replicas)]
        self._look()
        self._last: dict[int, int] = {}
        self.restarts = 0
        self._updating: set[int] = set()  # replicas that are out for the update, and those that still have to
        self._left: list[int] = []
        if options.failures is not None:
            for number in range(options.replicas):
                clock.after(self._fate.expovariate(1 / options.failures), self._fail, number)
        if options.update is not None:
            clock.at(options.update, self._update, list(range(options.replicas)))

    def pick(self, chat: int) -> Replica | None:
        """The replica for a chat's next request, None when the balancer knows of none.

        The less busy one of two that are drawn (Mitzenmacher 2001). A sticky chat stays where it is, unless it would be in
        a queue that is more than twice as long.
        """
        offered, choice = self._offered, self._draws.choice
        if not offered:
            return None
        number = min(choice(offered), choice(offered), key=lambda one: self.replicas[one].load)
        if self._options.sticky:
            home = self._last.get(chat, -1)
            if home in self._known and self.replicas[home].load <= 2 * self.replicas[number].load + _SPARE:
                number = home
            self._last[chat] = number
        return self.replicas[number]

    def _fail(self, number: int) -> None:
        if self.replicas[number].alive:
            self._restart(number)
        assert self._options.failures is not None
        self._clock.after(self._fate.expovariate(1 / self._options.failures), self._fail, number)

    def _restart(self, number: int) -> None:
        self.restarts += 1
        self.replicas[number].die()
        self._clock.after(CHECK_SECONDS, self._look)
        self._clock.after(self._options.restart, self._start, number)

    def _start(self, number: int) -> None:
        self.replicas[number].start()
        self._clock.after(CHECK_SECONDS, self._look)
        self._updating.discard(number)
        if self._left and not self._updating:
            left, self._left = self._left, []
            self._clock.after(2 * CHECK_SECONDS, self._update, left)

    def _look(self) -> None:
        """The balancer checks who answers; between two looks its view is a little late."""
        self._offered = [number for number, replica in enumerate(self.replicas) if replica.open]
        self._known = frozenset(self._offered)

    def _update(self, left: list[int]) -> None:
        """Take the next replicas out, and go on when they are back."""
        count = max(1, round(self._options.at_once * len(self.replicas)))
        some, rest = left[:count], left[count:]
        for number in some:
            self.replicas[number].open = False
        self._look()
        self._updating, self._left = set(some), rest
        for number in some:
            self._drain(number, self._clock.now + self._options.drain)

    def _drain(self, number: int, latest: float) -> None:
        """Restart a replica when it is idle, at the latest when its time is up."""
        replica = self.replicas[number]
        if not replica.alive:  # it failed meanwhile, and comes back updated
            return
        if replica.load and self._clock.now < latest:
            self._clock.after(0.25, self._drain, number, latest)
        else:
            self._restart(number)
