"""When a mention is flagged, what the model's reading is, and how thresholds are calibrated."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sae_runtime.build.calibrate import (
    _INTENDED_ABOVE,
    _READ_BELOW,
    MAX_FALSE_FLAGS,
    Judged,
    choose_thresholds,
    flag_figures,
)
from sae_runtime.catalog.view import Concept, Sense
from sae_runtime.detector.detector import Readout, misread_senses
from sae_runtime.evaluation.prompts import PlantedPrompt

shares = st.floats(0, 1)


def table(first: float) -> dict[str, float]:
    return {"first": first, "second": 1 - first}


def judged(kind: str, reading: float, intended: float, *, trusted: bool = True, meant: str = "first") -> Judged:
    """A judged prompt with the probabilities of the sense ``first``."""
    prompt = PlantedPrompt(
        id="x", prompt="a bank", kind=kind, concept="bank", mention="bank", intended=meant, domain=None  # type: ignore[arg-type]
    )  # fmt: skip
    return Judged(prompt, table(reading), table(intended), trusted)


@pytest.fixture(scope="module")
def concept(make_concept: Callable[..., Concept]) -> Concept:
    """Flags when the reading is at most 0.2 and the intended source at least 0.8."""
    return make_concept(read_below=0.2, intended_above=0.8)


@pytest.mark.parametrize(
    ("reading", "intended", "verdict"),
    [
        (0.1, 0.9, ("second", "first")),
        (0.2, 0.8, ("second", "first")),  # thresholds belong to the flagging side
        (0.21, 0.9, None),
        (0.1, 0.79, None),
        (0.5, 0.5, None),
        (0.9, 0.9, None),
        (0.9, 0.1, ("first", "second")),
        (0.1, 0.1, None),
    ],
)
def test_the_rule_flags_beyond_both_thresholds_and_abstains_between(
    concept: Concept, reading: float, intended: float, verdict: tuple[str, str] | None
) -> None:
    assert misread_senses(concept, table(reading), table(intended)) == verdict


def test_agreement_is_never_a_misread_even_with_loose_thresholds(make_concept: Callable[..., Concept]) -> None:
    loose = make_concept(read_below=1.0, intended_above=0.0)
    assert misread_senses(loose, table(0.9), table(0.6)) is None


@given(shares, shares)
def test_the_rule_never_flags_without_a_sure_source_and_a_low_reading(
    concept: Concept, reading: float, intended: float
) -> None:
    read, meant = table(reading), table(intended)
    verdict = misread_senses(concept, read, meant)
    if verdict is not None:
        assert meant[verdict[1]] == max(meant.values()) >= 0.8
        assert read[verdict[1]] <= 0.2 and read[verdict[0]] == max(read.values())


@given(shares, shares, st.sampled_from(_READ_BELOW), st.sampled_from(_INTENDED_ABOVE))
def test_calibration_applies_the_rule_that_serving_applies(
    make_concept: Callable[..., Concept], reading: float, intended: float, below: float, above: float
) -> None:
    served = misread_senses(make_concept(read_below=below, intended_above=above), table(reading), table(intended))
    calibrated = judged("plain", reading, intended).flagged(below, above)
    assert calibrated == (served[1] if served else None)


def test_a_reading_is_the_softmax_of_weighted_features(
    make_concept: Callable[..., Concept], make_sense: Callable[..., Sense]
) -> None:
    senses = (make_sense("first", bias=0.5, weights={70: 2.0, 9: -1.0}), make_sense("second", weights={9: 1.0}))
    reading = Readout.of(make_concept(senses=senses)).senses(np.array([3.0, 1.5]))  # latents 9 and 70
    assert math.log(reading["first"] / reading["second"]) == pytest.approx((0.5 + 2 * 1.5 - 3.0) - 3.0)
    assert sum(reading.values()) == pytest.approx(1.0)


def test_without_features_a_reading_rests_on_the_biases(
    make_concept: Callable[..., Concept], make_sense: Callable[..., Sense]
) -> None:
    senses = (make_sense("first", weights={4: 5.0}), make_sense("second", weights={4: -5.0}))
    assert Readout.of(make_concept(senses=senses)).senses(np.zeros(1)) == {"first": 0.5, "second": 0.5}


def test_figures_count_right_flags_and_false_ones() -> None:
    prompts = [
        judged("garden-path", 0.01, 0.99),  # flagged, right
        judged("domain", 0.01, 0.99, meant="second"),  # flagged with the wrong sense
        judged("domain", 0.6, 0.99),  # not flagged
        judged("plain", 0.01, 0.99),  # flagged, false
        judged("plain", 0.99, 0.99),
        judged("plain", 0.01, 0.99, trusted=False),  # its concept never flags
        judged("plain", 0.01, 0.5),
    ]
    figures = flag_figures(prompts, 0.2, 0.8)
    assert figures == pytest.approx({"precision": 1 / 3, "recall": 1 / 3, "flags": 3, "false_flag_rate_plain": 1 / 4})


def test_figures_of_no_prompts_are_zero() -> None:
    assert set(flag_figures([], 0.2, 0.8).values()) == {0}


pairs = st.tuples(st.sampled_from([0.0, 0.04, 0.12, 0.25, 0.45, 0.8]), st.sampled_from([0.6, 0.72, 0.88, 0.96, 0.99]))
prompt_sets = st.tuples(st.lists(pairs, max_size=12), st.lists(pairs, max_size=60))


def judged_set(planted: list[tuple[float, float]], plain: list[tuple[float, float]]) -> list[Judged]:
    return [judged("garden-path", *pair) for pair in planted] + [judged("plain", *pair) for pair in plain]


@given(prompt_sets)
def test_chosen_thresholds_have_the_best_recall_within_the_false_flag_limit(
    prompts: tuple[list[tuple[float, float]], list[tuple[float, float]]],
) -> None:
    items = judged_set(*prompts)
    every = [flag_figures(items, below, above) for below, above in product(_READ_BELOW, _INTENDED_ABOVE)]
    allowed = [figures for figures in every if figures["false_flag_rate_plain"] <= MAX_FALSE_FLAGS]
    assume(allowed)
    below, above, figures = choose_thresholds(items)
    assert figures == flag_figures(items, below, above)
    assert figures["false_flag_rate_plain"] <= MAX_FALSE_FLAGS
    assert figures["recall"] == max(other["recall"] for other in allowed)


def test_ties_go_to_the_strictest_thresholds() -> None:
    below, above, _ = choose_thresholds([judged("garden-path", 0.0, 1.0), judged("plain", 1.0, 1.0)])
    assert (below, above) == (min(_READ_BELOW), max(_INTENDED_ABOVE))


def test_false_flags_stay_within_the_limit_even_when_no_listed_pair_does() -> None:
    """Confident false flags on every plain prompt: the only safe answer is thresholds that flag nothing."""
    items = judged_set([(0.0, 1.0)], [(0.0, 1.0)] * 10)
    below, above, figures = choose_thresholds(items)
    assert figures["false_flag_rate_plain"] <= MAX_FALSE_FLAGS
    assert flag_figures(items, below, above)["false_flag_rate_plain"] <= MAX_FALSE_FLAGS
