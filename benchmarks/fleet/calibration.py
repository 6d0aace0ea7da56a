"""Where the costs come from. Two sources, nothing else:

- ``docs/performance.md``: the engine. Seven numbers are fitted to the rows of plain vLLM, by simulating them. The rows with
  readings are not looked at; the validation compares them with what the simulation says.
- this machine: planning, encoding and judging a prompt with the shipped catalog of the same model, measured by the program
  itself on given activations.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict
from statistics import median
from time import perf_counter, process_time
from typing import Any

import numpy as np
from scipy.optimize import least_squares

from benchmarks.fleet.costs import Costs, EngineCost, ReadingCost
from benchmarks.fleet.validation import Row, batch

_START = EngineCost(floor=0.03, free=64, token=6e-4, pair=4e-7, context=2e-6, sequence=5e-4, request=0.03)


def fit_engine(rows: Sequence[Row]) -> EngineCost:
    """The engine's cost by the rows of plain vLLM: least squares of the relative errors of both figures of each row."""
    rows = [row for row in rows if row.arm == "plain"]
    measured = np.log([(row.first_ms, row.speed) for row in rows])
    start = np.array(list(asdict(_START).values()))

    def errors(scale: Any) -> Any:
        costs = Costs(EngineCost(*map(float, scale * start)), ReadingCost())
        return (np.log([batch(row, costs) for row in rows]) - measured).ravel()

    # A simulation is not smooth: when two prompts just miss a common step, its figures jump. So the differences are wide.
    fit = least_squares(errors, np.ones(len(start)), bounds=(0.0, 4.0), diff_step=0.02)
    return EngineCost(*map(float, fit.x * start))


def measure_reading(*, rounds: int = 7, cpu_time: bool = False) -> ReadingCost:
    """Plan, encode and judge prompts of 64, 512 and 1,500 tokens that end in a mention, with the shipped small catalog, on one
    thread."""
    import torch

    from benchmarks.overhead import prompts
    from sae_runtime.detector import Detector
    from sae_runtime.detector.artefacts import Artefacts
    from sae_runtime.engines.chat import ChatEncoder
    from sae_runtime.engines.features import encode_prompt
    from sae_runtime.models.manifest import SMALL_MODEL

    torch.set_num_threads(1)  # threads that wait for each other would count as work
    opened = Artefacts.open(SMALL_MODEL)
    detector = Detector(opened.view, ChatEncoder(opened.model.path), 4096)
    sae = opened.load_sae()
    clock = process_time if cpu_time else perf_counter
    rng = random.Random(0)
    lengths = (64, 512, 1500)
    times: dict[str, list[float]] = {"plan": [], "encode": [], "judge": []}
    for length in lengths:
        stream = torch.randn(length, sae.d_in, generator=torch.Generator().manual_seed(length)) * 8
        seen: list[list[float]] = []
        for messages in prompts(detector.encoder, length, rounds + 1, rng):
            marks = [clock()]
            plan = detector.plan(messages, tokens=False)  # type: ignore[arg-type]
            marks.append(clock())
            features = encode_prompt(sae, stream, plan.latents)
            marks.append(clock())
            detector.reading(plan, features)
            seen.append([*np.diff([*marks, clock()])])
        for name, values in zip(times, zip(*seen[1:], strict=True), strict=True):  # the first one warms up
            times[name].append(median(values))
    numbers = {}
    for name, values in times.items():
        slope, base = np.polyfit(lengths, values, 1)
        numbers |= {f"{name}_base": max(0.0, float(base)), f"{name}_token": max(0.0, float(slope))}
    return ReadingCost(**numbers)


def as_table(costs: Costs) -> list[dict[str, Any]]:
    """The numbers with their sources, times in milliseconds."""
    engine = {name: (value, "fitted to docs/performance.md") for name, value in asdict(costs.engine).items()}
    reading = {name: (value, "measured here") for name, value in asdict(costs.reading).items()}
    return [
        {"cost": name, "value": float(f"{value * (1 if name == 'free' else 1e3):.3g}"), "source": source}
        for name, (value, source) in {**engine, **reading}.items()
    ]
