"""Reading labels from what was captured: SAE features, and the controls that read the residual stream itself.

``sae``: logistic regression on the features with the best F statistics, as signatures are. ``dense``: logistic
regression on the standardised residual stream, the strongest simple probe. ``diffmean``: distance to the class means
(Wu et al. 2025, AxBench). All are fitted on the fit part only; spot, size and penalty are chosen there by cross-validation over
groups, whose out-of-fold scores also give the temperature (Guo et al. 2017).
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import hstack
from scipy.special import softmax
from sklearn.feature_selection import SelectKBest, f_classif
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold
from sklearn.neighbors import NearestCentroid
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import MaxAbsScaler, StandardScaler

from sae_runtime.build.signatures import log_likelihood, temperature
from sae_runtime.build.stages import stage_key, write_text
from sae_runtime.evaluation.capture import Captured

Array = NDArray[np.float64]
Labels = NDArray[np.int64]
KINDS = ("sae", "dense", "diffmean")
TOGETHER = "together"  # all spots side by side
_FOLDS = 5
_VERSION = 1  # of the kept readings; changes with what readouts do


@dataclass(frozen=True)
class ReadLabels:
    """What one readout says of all items.

    Attributes:
        probabilities: ``[items, labels]``; each by a readout that was fitted without the item's group.
        spot, setting: what cross-validation chose.
        fit_accuracy: out-of-fold, on the fit part (cross-fitted: on the dev part).
    """

    probabilities: Array
    spot: str
    setting: str
    fit_accuracy: float


@dataclass(frozen=True)
class Labelled:
    """What readouts are fitted and judged on; all arrays ``[items]``.

    Attributes:
        labels: numbers of the labels; a readout never sees those of the items that it reads.
        fit: bool; items for the fit alone. The others are read.
        dev: bool; read items whose labels may be looked at.
        groups: never split between folds.
        weights: of items in a fit.
        count: number of labels.
    """

    labels: Labels
    fit: NDArray[np.bool_]
    dev: NDArray[np.bool_]
    groups: NDArray[Any]
    weights: Array
    count: int


def read_labels(kind: str, read: Captured, data: Labelled, *, cross_fitted: bool = False) -> ReadLabels:
    """Fit the readout ``kind`` and read all items.

    Args:
        kind: one of :data:`KINDS`.
        read: activations of all items.
        data: their labels.
        cross_fitted: read each item with a readout that was also fitted on the dev and test items of other groups.
    """
    base = data.fit | data.dev if cross_fitted else data.fit
    best: tuple[float, str, str, Callable[[], Pipeline], Array] | None = None
    for spot, x in _inputs(kind, read).items():
        for setting, make in _settings(kind):
            scores = _out_of_fold(make, x, data, base)
            likelihood = _likelihood(scores, data, base)
            if best is None or likelihood > best[0] + 1e-9:
                best = (likelihood, spot, setting, make, scores)
    assert best is not None  # noqa: S101 (there is at least one spot)
    _, spot, setting, make, scores = best
    x = _inputs(kind, read)[spot]
    judged = base
    if cross_fitted:
        own, judged = ~data.fit, data.dev
        scores = _out_of_fold(make, x, data, own, always=data.fit)
    else:
        unseen = ~data.fit
        if unseen.any():
            model = _fitted(make, x, data, np.flatnonzero(data.fit))
            scores[unseen] = _scores(model, x[np.flatnonzero(unseen)], data.count)
    return ReadLabels(
        probabilities=softmax(scores * temperature(scores[judged], data.labels[judged]), axis=1),
        spot=spot,
        setting=setting,
        fit_accuracy=float((scores[judged].argmax(1) == data.labels[judged]).mean()),
    )


def read_labels_once(
    kind: str, read: Captured, data: Labelled, cache: Path, *, cross_fitted: bool = False
) -> ReadLabels:
    """Like :func:`read_labels`; kept in ``cache`` under a key of everything that goes in, since wide fits take minutes."""
    arrays = [data.labels, data.fit, data.dev, data.weights]
    key = stage_key(
        _VERSION, kind, read.key, [a.tolist() for a in arrays], data.groups.tolist(), data.count, cross_fitted
    )
    path = cache / f"read-{key}.json"
    if read.key and path.exists():
        kept = json.loads(path.read_text("utf-8"))
        return ReadLabels(**{**kept, "probabilities": np.array(kept["probabilities"])})
    found = read_labels(kind, read, data, cross_fitted=cross_fitted)
    if read.key:
        rows = {"probabilities": found.probabilities.round(6).tolist(), "spot": found.spot, "setting": found.setting}
        write_text(path, json.dumps({**rows, "fit_accuracy": found.fit_accuracy}))
    return found


def _inputs(kind: str, read: Captured) -> dict[str, Any]:
    """What is read at each spot, and at all of them side by side."""
    single: dict[str, Any] = dict(read.features if kind == "sae" else read.dense)
    if len(single) < 2:
        return single
    parts = list(single.values())
    return {**single, TOGETHER: hstack(parts, format="csr") if kind == "sae" else np.concatenate(parts, axis=1)}


def _likelihood(scores: Array, data: Labelled, rows: NDArray[np.bool_]) -> float:
    """Weighted mean log-likelihood of the labels, at the best temperature."""
    scores, labels = scores[rows], data.labels[rows]
    return log_likelihood(scores, labels, temperature(scores, labels), data.weights[rows])


def _fitted(make: Callable[[], Pipeline], x: Any, data: Labelled, rows: NDArray[np.int64]) -> Pipeline:
    model = make()
    weights = (
        {"logisticregression__sample_weight": data.weights[rows]} if "logisticregression" in model.named_steps else {}
    )
    return model.fit(x[rows], data.labels[rows], **weights)


def _settings(kind: str) -> Iterator[tuple[str, Callable[[], Pipeline]]]:
    if kind == "sae":
        for size, penalty in product((48, 512, 4096), (0.3, 1.0)):
            yield (
                f"{size} features, C={penalty}",
                lambda size=size, penalty=penalty: make_pipeline(  # type: ignore[misc]
                    _Best(_f_statistic, k=size), MaxAbsScaler(), LogisticRegression(C=penalty, max_iter=1000)
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


def _f_statistic(x: Any, labels: Labels) -> Array:
    """F statistic of each feature; those that never fire get none."""
    with np.errstate(divide="ignore", invalid="ignore"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Features .* are constant")
        return np.nan_to_num(f_classif(x, labels)[0], nan=-1.0)


class _Best(SelectKBest):
    """The best features, all when there are fewer."""

    def _check_params(self, X: Any, y: Any) -> None:
        self.k: int = min(self.k, X.shape[1])


def _out_of_fold(
    make: Callable[[], Pipeline],
    x: Any,
    data: Labelled,
    rows: NDArray[np.bool_],
    always: NDArray[np.bool_] | None = None,
) -> Array:
    """Scores ``[items, labels]`` of ``rows``, each by a fit on the other groups among them (and on ``always``); else zeros."""
    scores = np.zeros((len(data.labels), data.count))
    at = np.flatnonzero(rows)
    beside = np.flatnonzero(always) if always is not None else np.array([], dtype=np.int64)
    folds = min(_FOLDS, len(set(data.groups[at].tolist())))
    for train, test in GroupKFold(folds, shuffle=True, random_state=0).split(at, groups=data.groups[at]):
        model = _fitted(make, x, data, np.concatenate([beside, at[train]]))
        scores[at[test]] = _scores(model, x[at[test]], data.count)
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
