"""From answers to figures: right or wrong, calibrated scores, likelihoods, intervals.

Choices are scored with contextual calibration (Zhao et al. 2021): the scores that the same options get for the same
question about nothing are subtracted, since small models prefer a letter whatever is asked. For two options there is
also ``right_tuned``: the border between them is the one that does best on the dev part, for each arm by itself, which
is the strictest baseline; and the area under the ROC curve, which no border can change.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from sae_runtime.evaluation.items import LETTERS, Item
from sae_runtime.evaluation.tasks.maths import last_number

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
        raw = np.array(answer["scores"])
        calibrated = raw - np.array(blank) if blank else raw
        gold = LETTERS.index(item.gold)
        likelihood = float(calibrated[gold] - np.logaddexp.reduce(calibrated))
        margin = float(calibrated[0] - calibrated[1]) if len(raw) == 2 else None
        return Scored(int(calibrated.argmax()) == gold, round(likelihood, 5), margin)
    found = last_number(answer["text"])
    right = found is not None and abs(found - float(item.gold)) < 1e-4 * max(1.0, abs(float(item.gold)))
    return Scored(right, answer.get("loglik"))


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
    _, numbers = np.unique(groups, return_inverse=True)
    sums, sizes = np.bincount(numbers, weights=differences), np.bincount(numbers)
    draws = np.random.default_rng(seed).integers(0, len(sums), size=(_RESAMPLES, len(sums)))
    means = sums[draws].sum(1) / sizes[draws].sum(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return round(float(low), 4), round(float(high), 4)


def gap_interval(values: Array, marked: NDArray[np.bool_], groups: NDArray[Any], seed: int = 0) -> tuple[float, float]:
    """95 % interval of the mean of ``values`` where ``marked`` minus the mean elsewhere; whole groups are drawn."""
    _, numbers = np.unique(groups, return_inverse=True)
    parts = [(np.bincount(numbers, weights=values * at), np.bincount(numbers, weights=at)) for at in (marked, ~marked)]
    draws = np.random.default_rng(seed).integers(0, numbers.max() + 1, size=(_RESAMPLES, numbers.max() + 1))
    with np.errstate(invalid="ignore"):
        means = [sums[draws].sum(1) / sizes[draws].sum(1) for sums, sizes in parts]
    low, high = np.nanquantile(means[0] - means[1], [0.025, 0.975])
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
