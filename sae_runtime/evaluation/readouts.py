"""Reading labels from what was captured: SAE features, and the controls that read the residual stream itself.

``sae``: logistic regression on the features, in two forms. *sparse*: on those with the best F statistics, as signatures are.
*decoded*: on the features times the decoder, so that features with like directions share a weight, which few labelled items
could not give each of them; still linear in the features (``f @ W_dec @ w``). ``dense``: logistic regression on the standardised
residual stream, the strongest simple probe. ``diffmean``: distance to the class means (Wu et al. 2025, AxBench).

All are fitted on the fit part only. There cross-validation over groups chooses spot, size and penalty, and whether to take the mean of
both forms, or of all spots (a late fusion: Kittler et al. 1998); its out-of-fold scores also give the temperature (Guo et al. 2017).
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
from scipy.sparse import hstack, issparse
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
FUSED = "fused"  # each spot by itself, then the mean of what they say
_FOLDS = 5
_VERSION = 2  # of the kept readings; changes with what readouts do


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
    members, scores = _likeliest(_candidates(kind, read, data, base), data, base)
    judged = base
    if cross_fitted:
        own, judged = ~data.fit, data.dev
        scores = _mean(members, [_out_of_fold(m.make, m.x, data, own, always=data.fit) for m in members])
    elif (unseen := np.flatnonzero(~data.fit)).size:
        fitted = [_fitted(m.make, m.x, data, np.flatnonzero(data.fit)) for m in members]
        scores[unseen] = _mean(
            members, [_scores(f, m.x[unseen], data.count) for m, f in zip(members, fitted, strict=True)]
        )
    return ReadLabels(
        probabilities=softmax(scores * temperature(scores[judged], data.labels[judged]), axis=1),
        spot=FUSED if len({member.spot for member in members}) > 1 else members[0].spot,
        setting="; ".join(dict.fromkeys(member.setting for member in members)),
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


@dataclass(frozen=True)
class _Candidate:
    """The best setting of one form of input at one spot; its out-of-fold ``scores`` ``[items, labels]`` are calibrated by
    ``factor`` already."""

    spot: str
    setting: str
    make: Callable[[], Pipeline]
    x: Any
    scores: Array
    factor: float


def _candidates(kind: str, read: Captured, data: Labelled, base: NDArray[np.bool_]) -> list[_Candidate]:
    found = []
    for form, spots in _inputs(kind, read).items():
        for spot, x in spots.items():
            tried = [(_out_of_fold(make, x, data, base), name, make) for name, make in _settings(form)]
            scores, name, make = max(tried, key=lambda one: _likelihood(one[0], data, base))
            factor = temperature(scores[base], data.labels[base])
            found.append(_Candidate(spot, name, make, x, scores * factor, factor))
    return found


def _likeliest(candidates: list[_Candidate], data: Labelled, base: NDArray[np.bool_]) -> tuple[list[_Candidate], Array]:
    """The candidates whose mean scores make the labels likeliest, and those scores: one alone, both forms of a spot, or all single
    spots. The simplest of equals."""
    by_spot: dict[str, list[_Candidate]] = {}
    for candidate in candidates:
        by_spot.setdefault(candidate.spot, []).append(candidate)
    single = [candidate for candidate in candidates if candidate.spot != TOGETHER]
    teams = [*([candidate] for candidate in candidates), *by_spot.values(), single]
    means = [(team, np.mean([member.scores for member in team], axis=0)) for team in teams]
    return max(
        means, key=lambda one: round(_likelihood(one[1], data, base), 9)
    )  # the first of equals: simple teams come first


def _mean(members: list[_Candidate], scores: list[Array]) -> Array:
    return np.mean([own * member.factor for member, own in zip(members, scores, strict=True)], axis=0)


def _inputs(kind: str, read: Captured) -> dict[str, dict[str, Any]]:
    """By form, what is read at each spot, and at all of them side by side."""
    if kind != "sae":
        return {kind: _with_together(dict(read.dense))}
    forms = {"sparse": _with_together(dict(read.features))}
    if read.decoder is not None:
        forms["decoded"] = _with_together({spot: x @ read.decoder for spot, x in read.features.items()})
    return forms


def _with_together(spots: dict[str, Any]) -> dict[str, Any]:
    if len(spots) < 2:
        return spots
    parts = list(spots.values())
    return {**spots, TOGETHER: hstack(parts, format="csr") if issparse(parts[0]) else np.concatenate(parts, axis=1)}


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


def _settings(form: str) -> Iterator[tuple[str, Callable[[], Pipeline]]]:
    if form == "sparse":
        for size, penalty in product((48, 512, 4096), (0.3, 1.0)):
            yield (
                f"{size} features, C={penalty}",
                lambda size=size, penalty=penalty: make_pipeline(  # type: ignore[misc]
                    _Best(_f_statistic, k=size), MaxAbsScaler(), LogisticRegression(C=penalty, max_iter=1000)
                ),
            )
    elif form in ("decoded", "dense"):
        for penalty in (1e-4, 1e-3, 1e-2, 1e-1):
            yield (
                f"{form}, C={penalty}",
                lambda penalty=penalty: make_pipeline(  # type: ignore[misc]
                    StandardScaler(), LogisticRegression(C=penalty, max_iter=1000)
                ),
            )
    else:
        yield "class means", lambda: make_pipeline(StandardScaler(), NearestCentroid())


def _f_statistic(x: Any, labels: Labels) -> Array:
    """F statistic of each feature; those that never fire get none."""
    with np.errstate(divide="ignore", invalid="ignore"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="(?s)Features .* are constant")
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
