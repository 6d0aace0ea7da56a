"""Prometheus metrics of the server's inspections, on vLLM's own ``/metrics``.

vLLM exposes prometheus_client's default registry, or, where ``PROMETHEUS_MULTIPROC_DIR`` is set, the files that all
processes with that setting write (``vllm/v1/metrics/prometheus.py``). Instruments of the default registry are in both;
custom collectors and ``Info`` would be missing from the second. They are made once per process, when this module is
imported, which is in the API server only. No label holds text of a prompt, and no client can choose a label's value:
flags are counted under the catalog's own concepts, the first :data:`MAX_CONCEPTS` that are flagged, others under ``other``.
"""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from prometheus_client import Counter, Gauge, Histogram

from sae_runtime.catalog.view import Concept
from sae_runtime.errors import SensecheckError

MAX_CONCEPTS = 256
OTHER = "other"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)

INSPECTIONS = Counter(
    "sensecheck_inspections",
    "Prompts that were to be read. outcome: clear, flagged, or unread (see sensecheck_bypasses).",
    ["route", "outcome"],
)
FLAGS = Counter("sensecheck_flags", "Mentions that were misread, by concept of the catalog.", ["concept"])
BYPASSES = Counter(
    "sensecheck_bypasses", "Prompts that went on unread, or (notes_refused) without notes.", ["route", "reason"]
)
IN_FLIGHT = Gauge("sensecheck_inspections_in_flight", "Readings under way.", multiprocess_mode="livesum")
DURATION = Histogram(
    "sensecheck_inspection_duration_seconds", "Whole time of an inspection, read or not.", ["route"], buckets=_SECONDS
)
STEPS = Histogram(
    "sensecheck_inspection_step_seconds",
    "Time of a step. queue: waiting for the thread that plans and judges. plan: tokens and mentions. "
    "compile: a glossary, at its first use. read: until the features are there, prefill included. judge: verdict and notes.",
    ["step"],
    buckets=_SECONDS,
)
NOTE_TOKENS = Counter("sensecheck_note_tokens", "Tokens of the notes that were given.")
GLOSSARIES = Counter(
    "sensecheck_glossary_compiles", "Glossaries that were compiled. outcome: done or failed.", ["outcome"]
)
PROMPT_LOG = Counter(
    "sensecheck_prompt_log_records",
    "Records for the prompt log. outcome: written, failed (disk), or dropped (the disk was too slow).",
    ["outcome"],
)
CATALOG = Gauge(
    "sensecheck_catalog_info",
    "1 for the catalog that reads, with the fingerprints of what it belongs to; 0 for one that it replaced.",
    ["model", "layer", "engine", "catalog", "sae", "weights"],
    multiprocess_mode="mostrecent",
)

# Series that exist before the first event: a rate from nothing to one would be lost otherwise.
ROUTES = ("inspect", "one_call")
for _route in ROUTES:
    DURATION.labels(_route)
    for _outcome in ("clear", "flagged", "unread"):
        INSPECTIONS.labels(_route, _outcome)
for _step in ("compile", "queue", "plan", "read", "judge"):
    STEPS.labels(_step)
for _outcome in ("done", "failed"):
    GLOSSARIES.labels(_outcome)
for _outcome in ("written", "failed", "dropped"):
    PROMPT_LOG.labels(_outcome)

_lock = threading.Lock()
_seen: set[str] = set()


def count_flag(concept: Concept) -> None:
    """Count a misread mention of a concept of the catalog or of a client's glossary."""
    name = concept.slug
    with _lock:
        if name not in _seen:
            if concept.declared is not None or len(_seen) >= MAX_CONCEPTS:
                name = OTHER
            else:
                _seen.add(name)
    FLAGS.labels(name).inc()


def reason_of(error: BaseException) -> str:
    """Why a prompt went unread: ``timeout``, ``cancelled``, the class of an error of ours, else ``other``."""
    if isinstance(error, TimeoutError):
        return "timeout"
    if not isinstance(error, Exception):
        return "cancelled"  # the client has gone, or the server stops
    return type(error).__name__ if isinstance(error, SensecheckError) else OTHER


def count_compile(task: asyncio.Task[Any]) -> None:
    """Count the glossary that ``task`` compiled, or failed to."""
    GLOSSARIES.labels("failed" if task.cancelled() or task.exception() else "done").inc()


class CatalogInfo:
    """The catalog in use as a metric: another one takes its place."""

    def __init__(self) -> None:
        self._current: dict[str, str] | None = None

    def use(self, **labels: str) -> None:
        """Say that the catalog with ``labels``, those of :data:`CATALOG`, reads from now on."""
        if self._current is not None:
            CATALOG.labels(**self._current).set(0)
        CATALOG.labels(**labels).set(1)
        self._current = labels
