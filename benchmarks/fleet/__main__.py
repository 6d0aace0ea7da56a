"""Calibrate, validate, simulate, print: see the package.

Everything is drawn from one seed; only the cost of a reading, which is measured here, differs between runs and machines.
``--costs`` writes the costs down, or takes them from an earlier run: then the tables are the same to the last digit.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.fleet.calibration import as_table, fit_engine, measure_reading
from benchmarks.fleet.costs import Costs, EngineCost, ReadingCost
from benchmarks.fleet.figures import Result, Scenario, row, run
from benchmarks.fleet.fleet import FleetOptions
from benchmarks.fleet.turns import MODES, PLAIN, TWO_CALLS
from benchmarks.fleet.validation import compare, ratios, read_rows, summary
from benchmarks.table import show
from sae_runtime.progress import progress

_LOADS = (0.3, 0.6, 0.9)
_TROUBLED = 40  # replicas in the tables of failures, updates and balancing
_MIDDLE = 0.6
Tables = dict[str, list[dict[str, Any]]]
Named = tuple[str, dict[str, Any], Scenario]


def length(replicas: int) -> tuple[float, float]:
    """Simulated seconds, and how many of them warm up: long for a few replicas, short for many."""
    return (1_200.0, 60.0) if replicas < 8 else (300.0, 60.0) if replicas < 64 else (60.0, 20.0)


def capacity(costs: Costs, seed: int) -> float:
    """Chats per second that one replica can serve plainly: the most that it finishes at any rate of arrivals.

    Beyond it fewer are finished, since chats drop out of the prefix cache before their next turn.
    """
    seconds, warm = length(1)
    base = Scenario(PLAIN, 0.25, seconds, warm, seed=seed)
    rates = [base.rate * 1.25**step for step in range(16)]
    return max(run(replace(base, rate=rate), costs).per_second for rate in rates) / base.traffic.turns


def steady(replicas: list[int], loads: list[float], rate: float, seed: int) -> Iterator[Named]:
    """Fleets of all sizes under all loads."""
    for count in replicas:
        seconds, warm = length(count)
        for load in loads:
            for mode in MODES:
                fleet = FleetOptions(replicas=count)
                name = {"replicas": count, "load": load}
                yield "steady", name, Scenario(mode, load * rate * count, seconds, warm, fleet, seed=seed)


def troubled(rate: float, seed: int) -> Iterator[Named]:
    """A fleet under middle load: without trouble, failing, updated, balanced otherwise; and other deadlines."""
    usual = FleetOptions(replicas=_TROUBLED)
    kinds = {
        "none": usual,
        "replicas fail every 20 min": replace(usual, failures=1_200.0),
        "rolling update, 5 % at once": replace(usual, update=60.0, at_once=0.05),
        "rolling update, 25 % at once": replace(usual, update=60.0, at_once=0.25),
    }
    for kind, fleet in kinds.items():
        for mode in MODES:
            yield "trouble", {"trouble": kind}, Scenario(mode, _MIDDLE * rate * _TROUBLED, 1_200, 60, fleet, seed=seed)
    for sticky in (True, False):
        for mode in MODES:
            name = {"a chat's requests go": "to the same replica" if sticky else "anywhere"}
            fleet = replace(usual, sticky=sticky)
            yield "balancing", name, Scenario(mode, _MIDDLE * rate * _TROUBLED, 300, 60, fleet, seed=seed)
    for load in _LOADS:
        for learnt in (True, False):
            name = {"load": load, "deadline": "as learnt" if learnt else "5 s alone"}
            fleet = FleetOptions(replicas=8)
            yield "deadlines", name, Scenario(TWO_CALLS, load * rate * 8, 300, 60, fleet, seed=seed, learnt=learnt)


def simulate(scenarios: list[Named], costs: Costs) -> Tables:
    """The tables, each scenario with ratios to plain in the same place."""
    tables: Tables = {}
    plain: dict[str, Result] = {}
    with progress("simulation", len(scenarios)) as advance:
        for table, name, scenario in scenarios:
            result = run(scenario, costs)
            if scenario.mode == PLAIN:
                plain[table] = result
            figures = {**name, **row(result, plain.get(table))}
            if table == "trouble":
                figures["restarts"] = result.restarts
            tables.setdefault(table, []).append(figures)
            advance(1, f"{table}: {', '.join(map(str, name.values()))}, {scenario.mode}")
    return tables


def calibrated(kept: Path | None, *, cpu_time: bool) -> Costs:
    """The costs in the file ``kept``; made anew, and written there, when there is none."""
    if kept is not None and kept.exists():
        found = json.loads(kept.read_text("utf-8"))
        return Costs(EngineCost(**found["engine"]), ReadingCost(**found["reading"]))
    costs = Costs(fit_engine(read_rows()), measure_reading(cpu_time=cpu_time))
    if kept is not None:
        kept.write_text(json.dumps(asdict(costs), indent=1) + "\n", "utf-8")
    return costs


def main(
    replicas: Annotated[list[int] | None, typer.Option(help="Sizes of fleets; may be repeated.")] = None,
    load: Annotated[
        list[float] | None, typer.Option(help="Of what a fleet can serve plainly; may be repeated.")
    ] = None,
    trouble: Annotated[bool, typer.Option(help="Also simulate failures, rolling updates, and other balancing.")] = True,
    costs: Annotated[Path | None, typer.Option(help="Read costs from this file, or write them there.")] = None,
    cpu_time: Annotated[
        bool, typer.Option(help="Measure readings by processor time, when the machine is shared.")
    ] = False,
    cells: Annotated[bool, typer.Option(help="Print every cell of the validation.")] = False,
    seed: int = 0,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """See the module."""
    known = calibrated(costs, cpu_time=cpu_time)
    compared = compare(read_rows(), known)
    rate = capacity(known, seed)
    scenarios = list(steady(replicas or [1, 8, 64, 1_000], load or list(_LOADS), rate, seed))
    scenarios += troubled(rate, seed) if trouble else []
    tables: Tables = {"costs": as_table(known), "validation": summary(compared)}
    tables |= {"cells": ratios(compared)} if cells else {}
    tables |= simulate(scenarios, known)
    if as_json:
        print(json.dumps({"chats_per_second_and_replica": rate, **tables}, indent=1))
        return
    print(f"One replica can serve {rate:.2f} chats per second plainly. Times are in seconds, costs in milliseconds.")
    for name, rows in tables.items():
        print(f"\n{name}:\n")
        show(rows, as_json=False)


if __name__ == "__main__":
    typer.run(main)
