"""How few sentences become a term's readout: the regression, and when the readout is trusted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.linear_model import Ridge
from small_glossaries import LEAD, term

from sae_runtime.catalog.view import Concept
from sae_runtime.detector.detector import Readout
from sae_runtime.detector.rule import judge
from sae_runtime.glossary.compile import (
    _RIDGE,
    MEANT,
    MIN_ACCURACY,
    MIN_EXAMPLES,
    OTHER,
    LabelledText,
    dual_ridge,
    fit_term,
)
from sae_runtime.glossary.terms import MAX_EXAMPLES

Array = NDArray[np.float64]


# The regression.


def weighting(y: Array) -> tuple[Array, Array]:
    """Weights of rows: in shares of one, and with a mean of one."""
    balance = np.where(y > 0, 0.5 / (y > 0).sum(), 0.5 / (y <= 0).sum())
    return balance, balance * len(y)


def direct(x: Array, y: Array, weight: Array, ridge: float, *, intercept: bool = True) -> Ridge:
    return Ridge(alpha=ridge, fit_intercept=intercept, solver="cholesky").fit(x, y, sample_weight=weight)


def ridge_of(x: Array, y: Array) -> float:
    """The ridge that :func:`dual_ridge` takes: a share of the mean squared norm of centred rows."""
    centred = x - weighting(y)[0] @ x
    return _RIDGE * float((centred**2).sum(1).mean())


def problem(positive: int, negative: int, width: int, seed: int) -> tuple[Array, Array]:
    """Random non-negative features, as pooled ones are, and labels."""
    random = np.random.default_rng(seed)
    return np.abs(random.normal(size=(positive + negative, width))), np.repeat([1.0, -1.0], [positive, negative])


problems = st.builds(problem, st.integers(2, 12), st.integers(2, 12), st.integers(1, 60), st.integers(0, 10_000))


@given(problems)
def test_the_dual_solution_is_the_weighted_ridge_regression(case: tuple[Array, Array]) -> None:
    x, y = case
    weights, bias, _ = dual_ridge(x, y)
    model = direct(x, y, weighting(y)[1], ridge_of(x, y))
    np.testing.assert_allclose(weights, model.coef_, atol=1e-7)
    assert bias == pytest.approx(model.intercept_, abs=1e-7)


def refitted(x: Array, y: Array) -> Array:
    """Leave-one-out predictions the slow way: everything but the ridge and the weights of rows is fitted anew."""
    weight, ridge = weighting(y)[1], ridge_of(x, y)
    found = []
    for row in range(len(y)):
        others = np.arange(len(y)) != row
        found.append(direct(x[others], y[others], weight[others], ridge).predict(x[row : row + 1])[0])
    return np.array(found)


@given(problems)
def test_left_out_predictions_are_those_of_a_fit_without_the_row(case: tuple[Array, Array]) -> None:
    x, y = case
    np.testing.assert_allclose(dual_ridge(x, y)[2], refitted(x, y), atol=1e-5)


def test_noise_is_not_told_apart() -> None:
    accuracies = []
    for seed in range(20):
        x, y = problem(6, 6, 500, seed)
        accuracies.append(((dual_ridge(x, y)[2] > 0) == (y > 0)).mean())
    assert np.mean(accuracies) < MIN_ACCURACY


def test_rows_that_are_all_alike_say_nothing() -> None:
    y = np.repeat([1.0, -1.0], [4, 2])
    weights, bias, left_out = dual_ridge(np.ones((6, 4)), y)
    np.testing.assert_allclose(weights, 0, atol=1e-9)
    assert bias == pytest.approx(0)
    assert (left_out * y < 0).all()  # without a row the rest speaks for the other side


# A term's readout.


def labelled(meant: Sequence[bool], *, given: bool = True) -> list[LabelledText]:
    return [LabelledText("churn", 0, 5, is_meant, given) for is_meant in meant]


def read(concept: Concept, pooled: Array) -> dict[str, float]:
    readout = Readout.of(concept)
    return readout.senses(pooled[readout.latents])


def separable(rows: Sequence[bool], seed: int, *, width: int = 30) -> Array:
    """Features of which the first three fire where the term is meant and the next three where it is not."""
    random = np.random.default_rng(seed)
    pooled = np.abs(random.normal(scale=0.05, size=(len(rows), width)))
    for row, is_meant in enumerate(rows):
        pooled[row, :3] += is_meant
        pooled[row, 3:6] += not is_meant
    return pooled


SIDES = [True] * 6 + [False] * 6
DECLARED = {MEANT: 0.98, OTHER: 0.02}


@given(st.integers(0, 1000))
def test_a_term_that_can_be_told_apart_is_read_right(seed: int) -> None:
    concept = fit_term(term(), labelled(SIDES), separable(SIDES, seed))
    assert concept.accuracy == 1.0
    for is_meant in (True, False):
        (fresh,) = separable([is_meant], seed + 5000)
        reading = read(concept, fresh)
        assert (reading[MEANT] > 0.9) == is_meant
        assert sum(reading.values()) == pytest.approx(1)
        verdict = judge(concept, reading, DECLARED)
        assert (verdict and verdict[:2]) == (None if is_meant else (OTHER, MEANT))


def test_a_term_becomes_a_concept_of_what_is_meant_and_the_rest() -> None:
    concept = fit_term(term("Lead time", **LEAD, note="Mind {mention}."), labelled(SIDES), separable(SIDES, 0))
    assert (concept.slug, concept.pack, concept.declared) == ("glossary:lead-time", "glossary", MEANT)
    assert concept.forms == ("lead time", "lead times")
    meant, other = concept.senses
    assert (meant.slug, meant.gloss, meant.note) == (MEANT, "a likely customer", "Mind {mention}.")
    assert (other.slug, other.gloss) == (OTHER, "a grey metal; the front place")
    assert meant.bias == -other.bias
    assert meant.weights == {latent: -weight for latent, weight in other.weights.items()}


@given(st.integers(MIN_EXAMPLES, 6), st.integers(0, 1000), st.floats(0, 50))
def test_a_term_that_cannot_be_told_apart_never_flags(examples: int, seed: int, scale: float) -> None:
    rows = [True] * examples + [False] * examples
    concept = fit_term(term(), labelled(rows), np.ones((len(rows), 8)))
    assert concept.accuracy < MIN_ACCURACY
    pooled = scale * np.abs(np.random.default_rng(seed).normal(size=8))
    for certain in ({MEANT: 0.0, OTHER: 1.0}, read(concept, pooled)):
        assert judge(concept, certain, {MEANT: 1.0, OTHER: 0.0}) is None


@pytest.mark.parametrize("others", [MIN_EXAMPLES, 9, MAX_EXAMPLES])
def test_many_sentences_on_one_side_do_not_make_a_term_that_cannot_be_told_apart_trusted(others: int) -> None:
    rows = [True] * MIN_EXAMPLES + [False] * others
    concept = fit_term(term(), labelled(rows), np.ones((len(rows), 8)))
    assert concept.accuracy < MIN_ACCURACY
    assert judge(concept, {MEANT: 0.0, OTHER: 1.0}, {MEANT: 1.0, OTHER: 0.0}) is None


def test_labels_that_contradict_the_features_are_not_trusted() -> None:
    crossed = [
        is_meant != bool(number % 2) for number, is_meant in enumerate(SIDES)
    ]  # half of each side fires as the other
    concept = fit_term(term(), labelled(SIDES), separable(crossed, 0, width=6))
    assert concept.accuracy < MIN_ACCURACY
    assert judge(concept, {MEANT: 0.0, OTHER: 1.0}, {MEANT: 1.0, OTHER: 0.0}) is None


def test_made_sentences_do_not_count_for_the_accuracy() -> None:
    texts = [*labelled(SIDES), *labelled(SIDES, given=False)]
    pooled = np.vstack([separable(SIDES, 0), separable(SIDES[::-1], 1)])  # the made ones contradict
    alone = fit_term(term(), labelled(SIDES), separable(SIDES, 0))
    assert fit_term(term(), texts, pooled).accuracy <= alone.accuracy == 1.0
    assert fit_term(term(), labelled(SIDES, given=False), separable(SIDES, 0)).accuracy == 0.0
