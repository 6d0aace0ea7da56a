"""Whether a series grows: real shapes of memory and of counters, with noise, warm-ups, steps and outliers."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.traffic.growth import LEAST_BLOCKS, judge

WARM_UP, BOUND = 600.0, 20.0
TIMES = np.arange(0, 1800, 10.0)  # half an hour, every ten seconds
LATE = TIMES >= WARM_UP


def noise(scale: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, scale, len(TIMES))


def judged(values, *, bound=BOUND):
    return judge(list(TIMES), list(values), warm_up=WARM_UP, bound=bound)


@pytest.mark.parametrize("seed", range(20))
def test_noise_around_a_level_is_no_growth(seed):
    growth = judged(2000 + noise(3, seed))
    assert growth.verdict == "pass"
    assert growth.low < growth.slope < growth.high
    assert abs(growth.slope) < BOUND / 2


@pytest.mark.parametrize("seed", range(20))
def test_a_leak_of_twice_the_bound_is_found_in_the_noise(seed):
    growth = judged(2000 + 2 * BOUND * TIMES / 3600 + noise(2, seed))
    assert growth.verdict == "fail"
    assert growth.slope == pytest.approx(2 * BOUND, rel=0.3)


def test_growth_within_the_bound_passes():
    growth = judged(2000 + 0.5 * BOUND * TIMES / 3600)
    assert (growth.verdict, growth.slope) == ("pass", pytest.approx(0.5 * BOUND))


def test_what_shrinks_passes():
    assert judged(2000 - 500 * TIMES / 3600 + noise(1)).verdict == "pass"


def test_the_warm_up_does_not_count():
    values = 2000 + np.where(LATE, 600, TIMES) + noise(1)
    assert judged(values).verdict == "pass"
    assert judge(list(TIMES), list(values), warm_up=0, bound=BOUND).verdict != "pass"


def test_single_outliers_do_not_count():
    values = 2000 + noise(1)
    values[[70, 95, 130, 179]] += 5000
    assert judged(values).verdict == "pass"


def test_a_staircase_of_leaks_is_found():
    """Allocators take memory in pieces: 16 MiB every four minutes are 240 an hour."""
    assert judged(2000 + 16 * (TIMES // 240)).verdict == "fail"


def test_one_step_leaves_it_undecided():
    """A late cache or the beginning of a leak: half an hour cannot tell."""
    assert judged(2000 + 20 * (TIMES > 1200) + noise(1)).verdict == "undecided"


def test_noise_as_large_as_the_bound_leaves_it_undecided():
    growth = judged(2000 + noise(60))
    assert growth.verdict == "undecided"
    assert growth.high > BOUND > growth.low


def test_a_counter_that_stands_still_has_no_interval():
    growth = judged([17] * len(TIMES), bound=0.0)
    assert growth == (17, 17, 0, 0, 0, 0, "pass")


def test_a_descriptor_lost_every_minute_fails_and_open_connections_do_not():
    rng = np.random.default_rng(1)
    assert judged(60 + TIMES // 60 + rng.integers(0, 4, len(TIMES)), bound=6.0).verdict == "fail"
    assert judged(60 + rng.integers(0, 4, len(TIMES)), bound=6.0).verdict == "pass"


def test_levels_are_those_at_both_ends_after_the_warm_up():
    growth = judged(np.where(LATE, 100 + (TIMES - WARM_UP) / 60, 5))
    assert growth.begin == pytest.approx(100.42, abs=0.01)
    assert growth.end == pytest.approx(119.42, abs=0.01)


def test_too_short_a_series_gets_no_verdict():
    few = TIMES < WARM_UP + 60 * (LEAST_BLOCKS - 1)
    with pytest.raises(ValueError, match=f"at least {LEAST_BLOCKS}"):
        judge(list(TIMES[few]), [1.0] * int(few.sum()), warm_up=WARM_UP, bound=BOUND)


def test_times_may_begin_anywhere_and_have_gaps():
    kept = [i for i in range(len(TIMES)) if not 90 <= i < 100]
    values = 2000 + 2 * BOUND * TIMES / 3600
    growth = judge([TIMES[i] + 1e9 for i in kept], [values[i] for i in kept], warm_up=WARM_UP, bound=BOUND)
    assert (growth.verdict, growth.slope) == ("fail", pytest.approx(2 * BOUND))
