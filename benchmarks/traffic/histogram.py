"""Durations as the server's own Prometheus histogram has them, for what a client cannot see."""

from __future__ import annotations

import math
from collections.abc import Mapping

from prometheus_client.parser import text_string_to_metric_families

Buckets = dict[float, float]
"""Events by upper bound of their bucket in seconds, each with those of all smaller buckets."""

_NAME = "sensecheck_inspection_duration_seconds"


def inspections(exposition: str, route: str) -> Buckets:
    """The inspections of a route in the text of ``/metrics``; empty when the server does not count them."""
    return {
        float(sample.labels["le"]): sample.value
        for family in text_string_to_metric_families(exposition)
        if family.name == _NAME
        for sample in family.samples
        if sample.name == f"{_NAME}_bucket" and sample.labels["route"] == route
    }


def between(before: Mapping[float, float], after: Mapping[float, float]) -> Buckets:
    """What was added."""
    return {bound: value - before.get(bound, 0.0) for bound, value in after.items()}


def together(some: list[Buckets]) -> Buckets:
    """The sum of several."""
    return {bound: sum(buckets.get(bound, 0.0) for buckets in some) for bound in sorted({b for s in some for b in s})}


def quantile(buckets: Mapping[float, float], share: float) -> float | None:
    """As Prometheus's ``histogram_quantile``: in proportion within a bucket; None without events.

    In the last bucket, which has no end, it is that bucket's beginning.
    """
    bounds = sorted(buckets)
    if not bounds or not buckets[bounds[-1]]:
        return None
    rank = share * buckets[bounds[-1]]
    low, below = 0.0, 0.0
    for bound in bounds:
        if buckets[bound] >= rank:
            if math.isinf(bound):
                return low
            return low + (bound - low) * (rank - below) / ((buckets[bound] - below) or 1.0)
        low, below = bound, buckets[bound]
    return low
