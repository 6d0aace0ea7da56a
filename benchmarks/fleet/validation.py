"""The simulation beside what was measured: the same batches of users, on one replica, arm by arm."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

from benchmarks.fleet.clock import Clock
from benchmarks.fleet.costs import Costs
from benchmarks.fleet.fleet import Fleet, FleetOptions
from benchmarks.fleet.replica import ReplicaOptions
from benchmarks.fleet.traffic import Chat, TurnSize
from benchmarks.fleet.turns import ONE_CALL, PLAIN, TWO_CALLS, Conversation, Crowd

NOTE = 40  # tokens of the benchmark's note in its frame
_FOREVER = 10_000.0
PERFORMANCE = Path(__file__).parents[2] / "docs" / "performance.md"
OUTPUT = 32  # tokens of every answer in its table
_ROW = re.compile(r"\| *(\d+) \| (\d+) \| (cold|warm) \| ([^|]+) \| \d+ \| ([\d.]+) \| [\d.]+ \| ([\d.]+) \| [\d.]+ \|")
_ARMS = {
    "plain": (PLAIN, 0),
    "not asked": (PLAIN, 0),
    "one call, clean": (ONE_CALL, 0),
    "one call, flagged": (ONE_CALL, NOTE),
    "two calls, clean": (TWO_CALLS, 0),
    "two calls, flagged": (TWO_CALLS, NOTE),
}


@dataclass(frozen=True)
class Row:
    """A row of the table in docs/performance.md: milliseconds to the first token, and output tokens per second of all users together."""

    tokens: int
    users: int
    cache: str
    arm: str
    first_ms: float
    speed: float


@dataclass(frozen=True)
class Compared:
    """A measured row, and what the simulation says instead of its two figures."""

    row: Row
    first_ms: float
    speed: float

    @property
    def errors(self) -> tuple[float, float]:
        """Relative errors of the time to the first token and of the throughput."""
        return self.first_ms / self.row.first_ms - 1, self.speed / self.row.speed - 1


def read_rows(path: Path = PERFORMANCE) -> list[Row]:
    """The rows of the first table of docs/performance.md.

    Raises:
        ValueError: there is none.
    """
    rows = [Row(int(m[1]), int(m[2]), m[3], m[4].strip(), float(m[5]), float(m[6]))
            for m in map(_ROW.match, path.read_text("utf-8").splitlines()) if m]  # fmt: skip
    if not rows:
        raise ValueError(f"{path} has no table of prompts by tokens, users, cache and arm.")
    return rows


def compare(rows: Sequence[Row], costs: Costs) -> list[Compared]:
    """Simulate every row of an arm that the simulation has."""
    return [Compared(row, *batch(row, costs)) for row in rows if row.arm in _ARMS]


def batch(row: Row, costs: Costs) -> tuple[float, float]:
    """Milliseconds to the first token, and tokens per second, when the row's users all ask at once.

    A warm batch is the same prompts asked again.
    """
    mode, note = _ARMS[row.arm]
    clock = Clock()
    fleet = Fleet(clock, costs, FleetOptions(), ReplicaOptions(), 0)
    crowd = Crowd(clock, fleet, costs, mode, clients=row.users, ceiling=_FOREVER, until=_FOREVER)
    begun = [0.0] if row.cache == "cold" else [0.0, _FOREVER / 2]
    turn = TurnSize(row.tokens, OUTPUT, note, 0.0)
    for again, time in enumerate(begun):
        for user in range(row.users):
            clock.at(time, crowd.ask, Conversation(Chat(user, time, (turn,)), shared=row.tokens * again))
    clock.run(_FOREVER)
    outcomes = crowd.outcomes[-row.users :]
    first = mean(outcome.first or 0.0 for outcome in outcomes)
    return first * 1e3, row.users * OUTPUT / max(outcome.ended or 0.0 for outcome in outcomes)


def summary(compared: Sequence[Compared]) -> list[dict[str, Any]]:
    """How far off the simulation is, by number of users and arm."""
    groups: dict[tuple[int, str], list[Compared]] = defaultdict(list)
    for one in compared:
        groups[one.row.users, one.row.arm].append(one)
    return [
        {
            "users": users,
            "arm": arm,
            "cells": len(group),
            "first_token_error_median": _percent(median(one.errors[0] for one in group)),
            "worst": _percent(max((one.errors[0] for one in group), key=abs)),
            "throughput_error_median": _percent(median(one.errors[1] for one in group)),
            "worst_": _percent(max((one.errors[1] for one in group), key=abs)),
        }
        for (users, arm), group in sorted(groups.items(), key=lambda item: (item[0][0], list(_ARMS).index(item[0][1])))
    ]


def ratios(compared: Sequence[Compared]) -> list[dict[str, Any]]:
    """Times to the first token as ratios to plain in the same cell, measured and simulated."""
    plain = {(one.row.tokens, one.row.users, one.row.cache): one for one in compared if one.row.arm == "plain"}
    result = []
    for one in compared:
        base = plain[one.row.tokens, one.row.users, one.row.cache]
        result.append({
            "tokens": one.row.tokens, "users": one.row.users, "cache": one.row.cache, "arm": one.row.arm,
            "measured_ms": one.row.first_ms, "simulated_ms": round(one.first_ms, 1),
            "measured_ratio": round(one.row.first_ms / base.row.first_ms, 2),
            "simulated_ratio": round(one.first_ms / base.first_ms, 2),
        })  # fmt: skip
    return result


def _percent(value: float) -> str:
    return f"{value:+.0%}"
