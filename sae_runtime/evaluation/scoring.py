"""From answers to figures: right or wrong, calibrated scores, likelihoods, intervals.

Choices are scored with contextual calibration (Zhao et al. 2021): the scores that the same options get for the same
question about nothing are subtracted, since small models prefer a letter whatever is asked. For two options there is
also a tuned score: the border between them is the one that does best on the dev part, for each arm by itself, which
is the strictest baseline; and the area under the ROC curve, which no border can change.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from sae_runtime.evaluation.items import LETTERS, Item
from sae_runtime.evaluation.tasks.maths import last_number, same_number

Array = NDArray[np.float64]
_RESAMPLES = 5000


@dataclass(frozen=True)
class Scored:
    """One answer.

    Attributes:
        right: whether it is the gold one.
        loglik: log-likelihood of the gold answer, nats; among the options for choices.
        margin: for two options, how much the first is preferred after calibration; None else.
    """

    right: bool
    loglik: float | None
    margin: float | None = None


def score(item: Item, answer: dict[str, Any], blank: list[float] | None) -> Scored:
    """Judge ``answer`` of a question about ``item``.

    Args:
        item: with the gold answer.
        answer: from :class:`Answers`.
        blank: scores of the options for the question about nothing.
    """
    if "scores" in answer:
        return score_choice(answer["scores"], LETTERS.index(item.gold), blank)
    found = last_number(answer["text"])
    return Scored(found is not None and same_number(found, float(item.gold)), answer.get("loglik"))


def score_choice(scores: list[float], gold: int, blank: list[float] | None) -> Scored:
    """Judge the ``scores`` of options, of which number ``gold`` is right; ``blank`` as in :func:`score`."""
    raw = np.array(scores)
    calibrated = raw - np.array(blank) if blank else raw
    likelihood = float(calibrated[gold] - np.logaddexp.reduce(calibrated))
    margin = float(calibrated[0] - calibrated[1]) if len(raw) == 2 else None
    return Scored(int(calibrated.argmax()) == gold, round(likelihood, 5), margin)


def border(margins: Array, first: NDArray[np.bool_]) -> float:
    """The margin from which the first option should count as chosen: the best on these items, midway between two."""
    cuts = np.unique(margins)
    candidates = np.concatenate([[cuts[0] - 1], (cuts[1:] + cuts[:-1]) / 2, [cuts[-1] + 1]])
    accuracy = [float(((margins > cut) == first).mean()) for cut in candidates]
    best = np.flatnonzero(np.array(accuracy) == max(accuracy))
    return float(candidates[best[len(best) // 2]])


def auc(margins: Array, first: NDArray[np.bool_]) -> float | None:
    """Area under the ROC curve; None when all items are alike."""
    return float(roc_auc_score(first, margins)) if 0 < first.mean() < 1 else None


def interval(differences: Array, groups: NDArray[Any], seed: int = 0) -> tuple[float, float]:
    """95 % interval of the mean of paired ``differences``, by a bootstrap that draws whole groups (Efron 1979)."""
    (means,) = _drawn_means(differences, [np.ones(len(differences), dtype=bool)], groups, seed)
    return _middle(means)


def gap_interval(values: Array, marked: NDArray[np.bool_], groups: NDArray[Any], seed: int = 0) -> tuple[float, float]:
    """95 % interval of the mean of ``values`` where ``marked`` minus the mean elsewhere; whole groups are drawn."""
    there, elsewhere = _drawn_means(values, [marked, ~marked], groups, seed)
    return _middle(there - elsewhere)


def _drawn_means(values: Array, parts: list[NDArray[np.bool_]], groups: NDArray[Any], seed: int) -> list[Array]:
    """Per part the means of its values over resamples of the groups; NaN where a resample has none of it."""
    _, numbers = np.unique(groups, return_inverse=True)
    count = numbers.max() + 1
    draws = np.random.default_rng(seed).integers(0, count, size=(_RESAMPLES, count))
    sums = [(np.bincount(numbers, weights=values * part), np.bincount(numbers, weights=part)) for part in parts]
    with np.errstate(invalid="ignore"):
        return [total[draws].sum(1) / size[draws].sum(1) for total, size in sums]


def _middle(means: Array) -> tuple[float, float]:
    low, high = np.nanquantile(means, [0.025, 0.975])
    return round(float(low), 4), round(float(high), 4)


def expected_calibration_error(probabilities: Array, right: NDArray[np.bool_], bins: int = 10) -> float:
    """Mean gap between confidence and accuracy over ``bins`` equally filled bins (Guo et al. 2017; adaptive bins).

    Args:
        probabilities: ``[items]``, of the label that is read.
        right: ``[items]``, whether it is the true one.
    """
    order = np.argsort(probabilities, kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    gaps = [len(part) * abs(probabilities[part].mean() - right[part].mean()) for part in parts]
    return float(sum(gaps) / len(order))
