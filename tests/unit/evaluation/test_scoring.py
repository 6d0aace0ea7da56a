"""Right and wrong, calibration, intervals."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sae_runtime.evaluation.items import Item
from sae_runtime.evaluation.scoring import auc, border, expected_calibration_error, gap_interval, interval, score


def item(gold: str = "B") -> Item:
    return Item("x", "test", "g", "p", {}, "no", ("yes", "no"), gold)


def test_a_constant_preference_for_a_letter_does_not_count() -> None:
    answer, blank = {"scores": [-0.1, -0.9]}, [-0.05, -3.0]  # prefers A, but far less than when asked about nothing
    assert not score(item(), answer, None).right
    found = score(item(), answer, blank)
    assert found.right
    assert found.margin == pytest.approx(-0.05 - 2.1)
    assert found.loglik == pytest.approx(-np.log1p(np.exp(-2.15)), abs=1e-4)


@pytest.mark.parametrize(("text", "right"), [("The answer is 4.0", True), ("The answer is 5", False), ("?", False)])
def test_numbers_are_compared_as_numbers(text: str, right: bool) -> None:
    number = Item("x", "test", "g", "p", {}, "addition", ("addition",), "4")
    found = score(number, {"text": text, "loglik": -1.5}, None)
    assert (found.right, found.loglik, found.margin) == (right, -1.5, None)


@given(st.lists(st.tuples(st.floats(-5, 5), st.booleans()), min_size=2, max_size=40))
def test_no_other_border_does_better(rows: list[tuple[float, bool]]) -> None:
    margins, first = np.array([m for m, _ in rows]), np.array([f for _, f in rows])
    cut = border(margins, first)
    best = ((margins > cut) == first).mean()
    for other in (-6.0, 0.0, 6.0, *margins):
        assert best >= ((margins > other) == first).mean() - 1e-12


def test_the_area_under_the_curve_needs_both_kinds() -> None:
    assert auc(np.array([3.0, 2.0, 1.0]), np.array([True, True, False])) == 1.0
    assert auc(np.array([3.0, 2.0]), np.array([True, True])) is None


def test_an_interval_covers_the_mean_and_is_wider_when_items_come_in_groups() -> None:
    values = np.repeat(np.random.default_rng(0).normal(0.3, 1, 40), 10)
    alone = interval(values, np.arange(400))
    grouped = interval(values, np.repeat(np.arange(40), 10))
    assert grouped[0] < alone[0] < values.mean() < alone[1] < grouped[1]
    assert interval(values, np.arange(400)) == alone


def test_the_gap_between_marked_and_other_items_has_an_interval() -> None:
    marked = np.arange(200) % 2 == 0
    low, high = gap_interval(np.where(marked, 0.2, 0.7), marked, np.arange(200))
    assert low == pytest.approx(-0.5) == high


def test_a_calibrated_reading_has_no_calibration_error() -> None:
    sure = np.array([0.5, 0.5, 1.0, 1.0])
    assert expected_calibration_error(sure, np.array([True, False, True, True]), bins=2) == pytest.approx(0)
    assert expected_calibration_error(sure, np.array([False, False, False, False]), bins=2) == pytest.approx(0.75)
