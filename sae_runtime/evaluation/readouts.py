"""Reading labels from what was captured: SAE features, and the controls that read the residual stream itself.

``sae``: logistic regression on the features with the best F statistics, as signatures are. ``dense``: logistic
regression on the standardised residual stream, the strongest simple probe. ``diffmean``: distance to the class means
(Wu et al. 2025, AxBench). All are fitted on the fit part only; spot, size and penalty are chosen there by cross-validation over
groups, whose out-of-fold scores also give the temperature (Guo et al. 2017).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.feature_selection import SelectKBest, f_classif
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold
from sklearn.neighbors import NearestCentroid
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import MaxAbsScaler, StandardScaler

from sae_runtime.build.signatures import log_likelihood, temperature
from sae_runtime.evaluation.capture import Captured

Array = NDArray[np.float64]
Labels = NDArray[np.int64]
KINDS = ("sae", "dense", "diffmean")
_FOLDS = 5


@dataclass(frozen=True)
class ReadLabels:
    """What one readout says of all items.

    Attributes:
        probabilities: ``[items, labels]``; of fit items out-of-fold, so that they may be judged as well.
        spot, setting: what cross-validation chose.
        fit_accuracy: out-of-fold.
    """

    probabilities: Array
    spot: str
    setting: str
    fit_accuracy: float


def read_labels(
    kind: str, read: Captured, labels: Labels, fit: NDArray[np.bool_], groups: NDArray[Any], count: int
) -> ReadLabels:
    """Fit the readout ``kind`` on the items ``fit`` and read all items.

    Args:
        kind: one of :data:`KINDS`.
        read: activations of all items.
        labels: int ``[items]``, the numbers of their labels; those of other than fit items are not looked at.
        fit: bool ``[items]``.
        groups: ``[items]``, never split between folds.
        count: number of labels.
    """
    best: tuple[float, str, str, Callable[[], Pipeline], Array] | None = None
    for spot in read.spots:
        x = (read.features if kind == "sae" else read.dense)[spot]
        for setting, make in _settings(kind):
            scores = _out_of_fold(make, x[fit], labels[fit], groups[fit], count)
            likelihood = log_likelihood(scores, labels[fit], temperature(scores, labels[fit]))
            if best is None or likelihood > best[0] + 1e-9:
                best = (likelihood, spot, setting, make, scores)
    assert best is not None  # noqa: S101 (there is at least one spot)
    _, spot, setting, make, scores = best
    x = (read.features if kind == "sae" else read.dense)[spot]
    everything = _scores(make().fit(x[fit], labels[fit]), x, count)
    everything[fit] = scores
    return ReadLabels(
        probabilities=_softmax(everything * temperature(scores, labels[fit])),
        spot=spot,
        setting=setting,
        fit_accuracy=float((scores.argmax(1) == labels[fit]).mean()),
    )


def _settings(kind: str) -> Iterator[tuple[str, Callable[[], Pipeline]]]:
    if kind == "sae":
        for size, penalty in product((48, 512), (0.03, 0.3, 3.0)):
            yield (
                f"{size} features, C={penalty}",
                lambda size=size, penalty=penalty: make_pipeline(  # type: ignore[misc]
                    _Best(f_classif, k=size), MaxAbsScaler(), LogisticRegression(C=penalty, max_iter=1000)
                ),
            )
    elif kind == "dense":
        for penalty in (1e-4, 1e-3, 1e-2):
            yield (
                f"C={penalty}",
                lambda penalty=penalty: make_pipeline(  # type: ignore[misc]
                    StandardScaler(), LogisticRegression(C=penalty, max_iter=1000)
                ),
            )
    else:
        yield "class means", lambda: make_pipeline(StandardScaler(), NearestCentroid())


class _Best(SelectKBest):
    """The best features, all when there are fewer; constant ones score nothing instead of warning."""

    def _check_params(self, X: Any, y: Any) -> None:
        self.k: int = min(self.k, X.shape[1])


def _out_of_fold(make: Callable[[], Pipeline], x: Any, labels: Labels, groups: NDArray[Any], count: int) -> Array:
    scores = np.zeros((len(labels), count))
    folds = min(_FOLDS, len(set(groups.tolist())))
    for train, test in GroupKFold(folds, shuffle=True, random_state=0).split(labels, groups=groups):
        scores[test] = _scores(make().fit(x[train], labels[train]), x[test], count)
    return scores


def _scores(model: Pipeline, x: Any, count: int) -> Array:
    """Scores ``[n, count]``; labels that the fit has not met get the lowest of the others."""
    last = model[-1]
    if isinstance(last, NearestCentroid):
        placed = model[:-1].transform(x)
        gaps = ((placed[:, None, :] - last.centroids_[None]) ** 2).mean(2)
        own = -gaps
    else:
        own = model.decision_function(x)
        if own.ndim == 1:
            own = np.stack([-own / 2, own / 2], axis=1)
    if own.shape[1] == count:
        return own
    scores = np.repeat(own.min(1, keepdims=True) - 5, count, axis=1)
    scores[:, last.classes_] = own
    return scores


def _softmax(scores: Array) -> Array:
    powers = np.exp(scores - scores.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)
