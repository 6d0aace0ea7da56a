"""What metrics, spans and log lines cost an inspection: ``python -m benchmarks.observing``.

The baseline is the work of an inspection that needs no model: planning and judging a prompt of about a hundred words. The
arms are one observed block with its four steps and nothing inside. The share is what observing adds to that work; a
reading also waits for the model, beside which it is less.

- ``metrics``: counters and histograms, log level WARNING, OpenTelemetry's API removed;
- ``no provider``: the same with the API, as in a program that has set no provider;
- ``log lines``: and a JSON line per inspection;
- ``spans``: and a recorded span, without an exporter.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable
from statistics import median
from time import perf_counter

import numpy as np
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from benchmarks.table import show
from sae_runtime import logs, tracing
from sae_runtime.detector import Detector
from sae_runtime.detector.artefacts import Artefacts
from sae_runtime.engines.chat import ChatEncoder
from sae_runtime.engines.features import PromptFeatures
from sae_runtime.models.manifest import SMALL_MODEL
from sae_runtime.serving.observer import Observer, step

_ROUNDS, _REPEATS = 15, 200
_TEXT = (
    "Please take your time and answer calmly, since nobody here is in a hurry. " * 7 + "How should I clean my mouse?"
)


def main() -> None:
    """Measure and print."""
    opened = Artefacts.open(SMALL_MODEL)
    detector = Detector(opened.view, ChatEncoder(opened.model.path), 2048)
    none = np.zeros(0, np.int32)

    def work() -> None:
        plan = detector.plan([{"role": "user", "content": _TEXT}], tokens=False)
        content = np.ones(len(plan.chat.token_ids), np.bool_)
        detector.reading(plan, PromptFeatures(content, none, none, np.zeros(0, np.float32)))

    baseline = _microseconds(work, 5)
    found = {"plan and judge": baseline}
    logging.getLogger("sensecheck").setLevel(logging.WARNING)
    api, tracing._api = tracing._api, None  # type: ignore[assignment]
    found["metrics"] = _microseconds(_observed, _REPEATS)
    tracing._api = api
    found["no provider"] = _microseconds(_observed, _REPEATS)
    logs.configure("json", stream=io.StringIO())
    found["log lines"] = _microseconds(_observed, _REPEATS)
    trace.set_tracer_provider(TracerProvider())
    found["spans"] = _microseconds(_observed, _REPEATS)
    rows = [{"arm": name, "microseconds": time, "of_the_baseline": time / baseline} for name, time in found.items()]
    show(rows, as_json=False)


_OBSERVER = Observer()


def _observed() -> None:
    with _OBSERVER.inspection("inspect"):
        for name in ("queue", "plan", "read", "judge"):
            with step(name):  # type: ignore[arg-type]
                pass


def _microseconds(call: Callable[[], None], repeats: int) -> float:
    """Median over rounds."""
    times = []
    for _ in range(_ROUNDS):
        began = perf_counter()
        for _ in range(repeats):
            call()
        times.append((perf_counter() - began) / repeats * 1e6)
    return median(times)


if __name__ == "__main__":
    main()
