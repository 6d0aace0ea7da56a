"""When a mention is flagged, what the model's reading is, and how thresholds are calibrated."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sae_runtime.build.calibrate import (
    _INTENDED_ABOVE,
    _READ_BELOW,
    MAX_FALSE_FLAGS,
    MIN_PRECISION,
    NO_FLAGS,
    Both,
    Bounds,
    Judged,
    Table,
    choose_bounds,
    choose_thresholds,
    flag_figures,
    within_limits,
)
from sae_runtime.catalog.entries import Early
from sae_runtime.catalog.view import Concept, Sense
from sae_runtime.detector.detector import Readout
from sae_runtime.detector.rule import TOLD_ABOVE, Senses, agreed, judge
from sae_runtime.evaluation.prompts import PlantedPrompt

shares = st.floats(0, 1)


def misread_senses(concept: Concept, reading: Senses, intended: Senses) -> tuple[str, str] | None:
    """Read as and intended, of a concept that is read late alone."""
    verdict = judge(concept, reading, intended)
    return (verdict.read_as, verdict.intended) if verdict else None


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
    assert figures == pytest.approx({"precision": 1 / 2, "recall": 1 / 3, "flags": 3, "false_flag_rate_plain": 1 / 4})


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
    allowed = [figures for figures in every if within_limits(figures, len(prompts[1]))]
    assume(allowed)
    below, above, figures = choose_thresholds(items)
    assert figures == flag_figures(items, below, above)
    assert figures["false_flag_rate_plain"] <= MAX_FALSE_FLAGS
    assert figures["recall"] == max(other["recall"] for other in allowed)


@pytest.mark.parametrize(
    ("flagged", "plain", "allowed"),
    [(0, 10, True), (1, 60, False), (3, 255, True), (4, 255, False), (16, 1020, True), (17, 1020, False)],
)
def test_fewer_plain_prompts_leave_more_room(flagged: int, plain: int, allowed: bool) -> None:
    assert within_limits({"false_flag_rate_plain": flagged / plain, "precision": 1.0}, plain) == allowed


def test_ties_go_to_the_strictest_thresholds() -> None:
    below, above, _ = choose_thresholds([judged("garden-path", 0.0, 1.0), judged("plain", 1.0, 1.0)])
    assert (below, above) == (min(_READ_BELOW), max(_INTENDED_ABOVE))


def test_false_flags_stay_within_the_limit_even_when_no_listed_pair_does() -> None:
    """Confident false flags on every plain prompt: the only safe answer is thresholds that flag nothing."""
    items = judged_set([(0.0, 1.0)], [(0.0, 1.0)] * 10)
    below, above, figures = choose_thresholds(items)
    assert figures["false_flag_rate_plain"] <= MAX_FALSE_FLAGS
    assert flag_figures(items, below, above)["false_flag_rate_plain"] <= MAX_FALSE_FLAGS


EARLY = Early(read_below=0.2, intended_above=0.8, seconded_above=0.9, biases=(0.0, 0.0), weights=({}, {}))


@pytest.mark.parametrize(
    ("early", "late", "intended", "declared", "verdict"),
    [
        # Undeclared: the first impression counts, and the words must be sure of the other sense ...
        (0.1, 0.9, 0.85, False, ("second", "first", True, False)),
        (0.3, 0.9, 0.85, False, None),
        # ... or be seconded by what the model makes of it later.
        (0.1, 0.9, 0.6, False, ("second", "first", True, True)),
        (0.1, 0.5, 0.6, False, None),
        # The late reading comes first.
        (0.9, 0.1, 0.85, False, ("second", "first", False, False)),
        (0.1, 0.1, 0.85, False, ("second", "first", False, False)),
        # What both say together is the second sense, as at first.
        (0.1, 0.1, 0.6, False, None),
        # Declared: nothing need second it.
        (0.1, 0.9, 0.85, True, ("second", "first", True, False)),
        (0.1, 0.9, 0.6, True, None),
    ],
)
def test_what_the_early_reading_adds(
    make_concept: Callable[..., Concept],
    early: float,
    late: float,
    intended: float,
    declared: bool,
    verdict: tuple[str, str, bool, bool] | None,
) -> None:
    concept = make_concept(read_below=0.2, intended_above=0.8, early=EARLY)
    found = judge(concept, table(late), table(intended), table(early), declared=declared)
    assert (found and (found.read_as, found.intended, found.early, found.seconded)) == verdict


@pytest.mark.parametrize(
    ("late", "early", "intended"),
    [(0.1, 0.9, 0.9), (0.9, 0.1, 0.9), (0.9, 0.1, 0.6)],  # each of the rule's three ways to a flag
)
def test_what_was_told_before_is_not_flagged(
    make_concept: Callable[..., Concept], late: float, early: float, intended: float
) -> None:
    concept = make_concept(read_below=0.2, intended_above=0.8, early=EARLY)

    def flagged(told: float) -> bool:
        return judge(concept, table(late), table(intended), table(early), told=table(told)) is not None

    assert flagged(0.5)
    assert flagged(TOLD_ABOVE - 0.01)
    assert not flagged(TOLD_ABOVE)
    assert flagged(1 - TOLD_ABOVE)  # another sense was told: that is what leads astray


@given(shares, shares)
def test_witnesses_that_agree_make_it_surer_and_an_unsure_one_changes_nothing(one: float, other: float) -> None:
    both = agreed(table(one), table(other))
    assert sum(both.values()) == pytest.approx(1)
    assert both["first"] == pytest.approx(agreed(table(other), table(one))["first"])
    if one > 0.5 and other > 0.5:
        assert both["first"] >= max(one, other) - 1e-9
    assert agreed(table(one), table(0.5))["first"] == pytest.approx(one, abs=1e-9)


both_prompts = st.builds(
    lambda kind, late, early, intended, told, declared, low, meant: Both(
        judged(kind, 0.5, 0.5, meant=meant).prompt,
        table(late),
        table(early),
        table(intended),
        table(told),
        declared,
        *low,
    ),
    st.sampled_from(["garden-path", "domain", "plain"]),
    shares,
    shares,
    shares,
    shares,
    st.booleans(),
    st.tuples(st.sampled_from([-1.0, 0.1, 0.6]), st.sampled_from([-1.0, 0.1, 0.6])),
    st.sampled_from(["first", "second"]),
)
grid = st.builds(
    Bounds,
    *(
        st.sampled_from(values)
        for values in (_READ_BELOW, _INTENDED_ABOVE, _READ_BELOW, _INTENDED_ABOVE, _INTENDED_ABOVE)
    ),
)


@given(st.lists(both_prompts, min_size=1, max_size=8), grid)
def test_the_calibrated_rule_is_the_served_one(
    make_concept: Callable[..., Concept], prompts: list[Both], bounds: Bounds
) -> None:
    flagged, right = Table(prompts).flags(bounds)
    for one, flag, hit in zip(prompts, flagged, right, strict=True):
        early = replace(
            EARLY,
            read_below=min(bounds.early_below, one.early_below),
            intended_above=bounds.early_above,
            seconded_above=bounds.seconded_above,
        )
        concept = make_concept(
            read_below=min(bounds.read_below, one.late_below), intended_above=bounds.intended_above, early=early
        )
        served = judge(concept, one.reading, one.intended, one.early, told=one.told, declared=one.declared)
        assert flag == (served is not None)
        assert hit == (served is not None and served.intended == one.prompt.intended)


@settings(max_examples=3, deadline=None)  # each goes through the whole grid
@given(st.lists(both_prompts, min_size=1, max_size=12))
def test_chosen_bounds_keep_the_limits_or_flag_nothing(prompts: list[Both]) -> None:
    bounds, figures = choose_bounds(prompts)
    assert figures == Table(prompts).figures(bounds)
    assert figures["false_flag_rate_plain"] <= MAX_FALSE_FLAGS
    assert (bounds == NO_FLAGS and not figures["flags"]) or figures["precision"] >= MIN_PRECISION
