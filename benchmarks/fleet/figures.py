"""A run from start to end, and its figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.fleet.clock import Clock
from benchmarks.fleet.costs import Costs
from benchmarks.fleet.fleet import Fleet, FleetOptions
from benchmarks.fleet.replica import ReplicaOptions
from benchmarks.fleet.traffic import Chat, Traffic
from benchmarks.fleet.turns import Crowd, Outcome

_PATIENCE = 20  # times the run's length, after which turns that are still open stay so


@dataclass(frozen=True)
class Scenario:
    """What is simulated.

    Attributes:
        mode: plain, one call, or two calls.
        rate: chats that begin per second, in the whole fleet.
        seconds: how long chats begin.
        warm: seconds at the start that do not count.
        ceiling: seconds that a reading before its answer may take at most (the annotator's default).
        learnt: clients also give up when a reading takes longer than they have learnt.
        seed: of everything that is drawn.
    """

    mode: str
    rate: float
    seconds: float
    warm: float = 0.0
    fleet: FleetOptions = field(default_factory=FleetOptions)
    replica: ReplicaOptions = field(default_factory=ReplicaOptions)
    traffic: Traffic = field(default_factory=Traffic)
    ceiling: float = 5.0
    learnt: bool = True
    seed: int = 0


@dataclass(frozen=True)
class Result:
    """What became of all turns of a run (``states``, by state), and the outcomes of those that count."""

    scenario: Scenario
    outcomes: list[Outcome]
    states: dict[str, int]
    asked: int
    events: int
    restarts: int
    per_second: float
    tokens_per_second: float


def run(scenario: Scenario, costs: Costs, chats: Sequence[Chat] | None = None) -> Result:
    """Simulate a scenario, with its traffic's chats or with given ones."""
    clock = Clock()
    options = scenario.fleet
    fleet = Fleet(clock, costs, options, scenario.replica, scenario.seed)
    crowd = Crowd(
        clock,
        fleet,
        costs,
        scenario.mode,
        clients=options.replicas,
        ceiling=scenario.ceiling,
        until=scenario.seconds,
        learnt=scenario.learnt,
    )
    for chat in scenario.traffic.chats(scenario.rate, scenario.seconds, scenario.seed) if chats is None else chats:
        crowd.join(chat)
    clock.run(scenario.seconds)
    limit = scenario.seconds * _PATIENCE
    while crowd.states["open"] and clock.now < limit:
        clock.run(min(limit, clock.now + scenario.seconds / 10))
    span = scenario.seconds - scenario.warm
    finished = [
        outcome
        for outcome in crowd.outcomes
        if outcome.state == "answered" and scenario.warm <= outcome.began + (outcome.ended or 0.0) <= scenario.seconds
    ]
    return Result(
        scenario=scenario,
        outcomes=[outcome for outcome in crowd.outcomes if outcome.began >= scenario.warm],
        states=dict(crowd.states),
        asked=len(crowd.outcomes),
        events=clock.events,
        restarts=fleet.restarts,
        per_second=len(finished) / span,
        tokens_per_second=sum(outcome.tokens for outcome in finished) / span,
    )


def row(result: Result, plain: Result | None = None) -> dict[str, Any]:
    """The figures that count, with ratios to plain where it is given."""
    outcomes = result.outcomes
    first = [outcome.first for outcome in outcomes if outcome.first is not None]
    read = [outcome.inspected for outcome in outcomes if outcome.inspected is not None]
    reading = result.scenario.mode != "plain"
    figures: dict[str, Any] = {
        "mode": result.scenario.mode,
        "turns": len(outcomes),
        "first_token_p50": percentile(first, 50),
        "p95": percentile(first, 95),
        "p99": percentile(first, 99),
        "inspected_p50": percentile(read, 50) if reading else None,
        "inspected_p95": percentile(read, 95) if reading else None,
        "inspected_p99": percentile(read, 99) if reading else None,
        "too_late": share(outcome.bypassed == "timeout" for outcome in outcomes) if reading else None,
        "suspended": share(outcome.bypassed == "circuit open" for outcome in outcomes) if reading else None,
        "bypassed": share(outcome.bypassed is not None for outcome in outcomes) if reading else None,
        "lost": share(outcome.state != "answered" for outcome in outcomes),
        "turns_per_second": round(result.per_second, 2),
        "tokens_per_second": round(result.tokens_per_second, 1),
    }
    if plain is not None:
        base = [outcome.first for outcome in plain.outcomes if outcome.first is not None]
        for place in (50, 99):
            ratio = percentile(first, place) / percentile(base, place) if base and first else float("nan")
            figures[f"p{place}_ratio"] = round(ratio, 3)
    return figures


def percentile(values: Sequence[float], place: float) -> float:
    """In seconds; NaN of nothing."""
    return round(float(np.percentile(values, place)), 4) if len(values) else float("nan")


def share(values: Any) -> float:
    """Of those that are true."""
    listed = list(values)
    return round(sum(listed) / max(1, len(listed)), 5)
