"""Whether something that is measured again and again grows: a robust slope, its interval, and a verdict."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from scipy.stats import theilslopes, trim_mean

Verdict = Literal["pass", "fail", "undecided"]
BLOCK_SECONDS = 60.0
LEAST_BLOCKS = 8
_HOUR = 3600.0
_TRIMMED = 0.2  # of the samples at either end


class Growth(NamedTuple):
    """What was found, in the measure's own unit.

    Attributes:
        begin, end: level in the first and the last minute after the warm-up.
        slope, low, high: growth per hour, with the ends of its 95 % interval.
        bound: growth per hour that is still accepted.
        verdict: ``pass`` when the whole interval is at or below the bound, ``fail`` when it is above, else ``undecided``.
    """

    begin: float
    end: float
    slope: float
    low: float
    high: float
    bound: float
    verdict: Verdict


def judge(times: Sequence[float], values: Sequence[float], *, warm_up: float, bound: float) -> Growth:
    """Judge the growth of a series.

    The slope is Theil and Sen's, the median of the slopes between all pairs of points, which single outliers do not move. Its
    interval takes the points as independent, which samples some seconds apart are not: caches fill and are emptied over
    many of them. So the points are means over a minute each, without its highest and lowest samples.

    Args:
        times: seconds, rising.
        values: one per time.
        warm_up: seconds from the first sample on that do not count.
        bound: growth per hour that is still accepted.

    Raises:
        ValueError: what is left after the warm-up is shorter than :data:`LEAST_BLOCKS` minutes.
    """
    at = np.asarray(times, dtype=float) - times[0]
    level = np.asarray(values, dtype=float)[at >= warm_up]
    at = at[at >= warm_up]
    block = ((at - warm_up) // BLOCK_SECONDS).astype(int)
    numbers = np.unique(block)
    if len(numbers) < LEAST_BLOCKS:
        raise ValueError(f"{len(numbers)} minutes after the warm-up are too few for a slope; at least {LEAST_BLOCKS}.")
    points = np.array([trim_mean(level[block == n], _TRIMMED) for n in numbers])
    middles = np.array([np.median(at[block == n]) for n in numbers])
    slope, _, low, high = (_HOUR * float(value) for value in theilslopes(points, middles, alpha=0.95))
    verdict: Verdict = "pass" if high <= bound else "fail" if low > bound else "undecided"
    return Growth(float(points[0]), float(points[-1]), slope, low, high, bound, verdict)
