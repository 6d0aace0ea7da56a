"""Fitting signatures: a sparse, calibrated readout of a concept's senses from SAE features.

Per site: features are ranked by their F statistic on the fit contexts, and the best ``max_features`` are read *through the
decoder*: a multinomial logistic regression with an L2 penalty on ``features @ W_dec``, whose weights ``w`` become those of the
features, ``W_dec @ w``. Features with like directions so share their evidence, which the dozen sentences of a sense could not give
each of them (with a weight of its own for each feature, cross-validated accuracy is 0.889 instead of 0.910 on the small
model's concepts). Site and penalty are chosen by cross-validation on the fit contexts, where the out-of-fold scores also give
the temperature (Guo et al. 2017). Held-out contexts are only ever scored.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from sklearn.feature_selection import f_classif
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold

from sae_runtime.build.contexts import ContextFeatures
from sae_runtime.detector.sites import SITES

Array = NDArray[np.float64]
_PENALTIES = (0.001, 0.01, 0.1)  # inverse strengths C of the L2 penalty
_FOLDS = 5
OWN_SENSE_SHARE = 0.05
"""Share of a concept's own sentences that may get less for their sense than the bound under which a mention is flagged."""
_MIN_SUPPORT = 3  # a feature must fire in at least this many fit contexts


@dataclass(frozen=True)
class Readout:
    """A linear readout over some columns: ``logits = x[:, columns] @ weights.T + bias``."""

    columns: NDArray[np.int64]
    weights: Array
    bias: Array

    def logits(self, x: Array) -> Array:
        """Scores ``[n, senses]`` of rows ``[n, all columns]``."""
        return x[:, self.columns] @ self.weights.T + self.bias

    def of_sense(self, number: int) -> list[tuple[int, float]]:
        """Columns and weights of one sense."""
        return list(zip(self.columns.tolist(), self.weights[number].tolist(), strict=True))

    def scaled(self, factor: float) -> Readout:
        """The same readout with all scores multiplied."""
        return Readout(self.columns, self.weights * factor, self.bias * factor)


@dataclass(frozen=True)
class Fit:
    """A calibrated readout at one site, with what cross-validation says of it on the fit contexts.

    ``accuracy``: out-of-fold. ``likelihood``: of the out-of-fold scores, nats. ``own_sense_low``: 5 % quantile of the calibrated
    probability that contexts get, out-of-fold, for their own sense: a mention that gets less for the sense that is meant is unlikely to
    be read in it.
    """

    site: str
    readout: Readout
    likelihood: float
    accuracy: float
    own_sense_low: float


@dataclass(frozen=True)
class Signature:
    """A fitted concept: where it is read best (``late``), how it is read at the mention alone (``early``), and how it does.

    The readouts' columns are latents. ``accuracy`` is on held-out contexts; ``dense_accuracy`` is a
    dense logistic probe at the same site on the same held-out contexts. ``held_out_probabilities`` ``[n, senses]``.
    ``purity`` ``[m]``: per feature the share of its activation on held-out contexts that lies in the sense it votes for
    most; NaN where it was silent on all.
    """

    late: Fit
    early: Fit
    accuracy: float
    dense_accuracy: float
    held_out_probabilities: Array
    held_out_labels: NDArray[np.int64]
    purity: Array

    @property
    def latents(self) -> set[int]:
        """All that are read."""
        return {int(column) for fit in (self.late, self.early) for column in fit.readout.columns}


def fit_signature(
    data: ContextFeatures, directions: Array, *, max_features: int, seed: int, allowed: list[int]
) -> Signature:
    """Fit, calibrate and score the signature of one concept, over the latents ``allowed``.

    Deterministic for a given seed.

    Args:
        data: features of the concept's sentences.
        directions: decoder directions by latent ``[width, d_model]``.
        max_features: most latents that each readout has.
        seed: of the folds.
        allowed: latents that it may read.
    """
    held = data.held_out.numpy()
    labels = data.labels.numpy()
    latents = np.array(sorted(allowed), dtype=np.int64)
    features = {site: data.sites[site].numpy()[:, latents].astype(np.float64) for site in SITES}
    fits = {
        site: _fit(site, x[~held], labels[~held], directions[latents], max_features, seed)
        for site, x in features.items()
    }
    late = max(fits.values(), key=lambda fit: round(fit.likelihood, 9))  # the first of equals
    x = features[late.site][held]
    probabilities = np.exp(log_softmax(late.readout.logits(x), axis=1))
    dense = data.dense[late.site].numpy().astype(np.float64)
    return Signature(
        late=_by_latent(late, latents),
        early=_by_latent(fits["mention"], latents),
        accuracy=float((probabilities.argmax(1) == labels[held]).mean()),
        dense_accuracy=_dense_accuracy(dense[~held], labels[~held], dense[held], labels[held]),
        held_out_probabilities=probabilities,
        held_out_labels=labels[held],
        purity=_purity(late.readout, x, labels[held]),
    )


def _fit(site: str, x: Array, labels: NDArray[np.int64], directions: Array, max_features: int, seed: int) -> Fit:
    """The readout of fit contexts ``[n, columns]`` with the likeliest penalty."""
    best: tuple[float, float, float, Array] | None = None
    for penalty in _PENALTIES:
        scores = _out_of_fold(x, labels, directions, max_features, penalty, seed)
        factor = temperature(scores, labels)
        likelihood = log_likelihood(scores, labels, factor)
        if best is None or likelihood > best[0] + 1e-9:
            best = (likelihood, penalty, factor, scores)
    assert best is not None  # noqa: S101 (_PENALTIES is not empty)
    likelihood, penalty, factor, scores = best
    own = np.exp(log_softmax(scores * factor, axis=1))[np.arange(len(scores)), labels]
    return Fit(
        site=site,
        readout=fit_readout(x, labels, directions, max_features, penalty).scaled(factor),
        likelihood=likelihood,
        accuracy=float((scores.argmax(1) == labels).mean()),
        own_sense_low=float(np.quantile(own, OWN_SENSE_SHARE)),
    )


def _by_latent(fit: Fit, latents: NDArray[np.int64]) -> Fit:
    return replace(fit, readout=replace(fit.readout, columns=latents[fit.readout.columns]))


def fit_readout(x: Array, labels: NDArray[np.int64], directions: Array, max_features: int, penalty: float) -> Readout:
    """Select columns by F statistic and fit the regression through their directions.

    Args:
        x: features ``[n, columns]``.
        labels: sense numbers ``[n]``.
        directions: of the columns ``[columns, d_model]``.
        max_features: most columns that are read.
        penalty: inverse strength of the L2 penalty on the standardised ``features @ directions``.
    """
    eligible = ((x > 0).sum(0) >= _MIN_SUPPORT).nonzero()[0]
    if not len(eligible):  # nothing to read: every mention gets the senses' shares of the contexts
        shares = np.bincount(labels) / len(labels)
        return Readout(eligible, np.zeros((len(shares), 0)), np.log(shares))
    statistic, _ = f_classif(x[:, eligible], labels)
    ranked = eligible[np.argsort(-np.nan_to_num(statistic, nan=0.0), kind="stable")]
    columns = np.sort(ranked[:max_features])
    decoded = x[:, columns] @ directions[columns]
    centre, spread = decoded.mean(0), decoded.std(0) + 1e-6
    model = LogisticRegression(C=penalty, max_iter=500).fit((decoded - centre) / spread, labels)
    weights = model.coef_ / spread
    bias = model.intercept_ - weights @ centre
    weights = weights @ directions[columns].T
    if len(weights) == 1:  # two senses: scikit-learn gives one row, for the second
        weights, bias = np.concatenate([-weights, weights]) / 2, np.concatenate([-bias, bias]) / 2
    return Readout(columns, weights, bias)


def _purity(readout: Readout, x: Array, labels: NDArray[np.int64]) -> Array:
    votes = readout.weights.argmax(0)
    values = x[:, readout.columns]
    own = (values * (labels[:, None] == votes)).sum(0)
    with np.errstate(invalid="ignore"):
        return own / values.sum(0)


def _out_of_fold(
    x: Array, labels: NDArray[np.int64], directions: Array, max_features: int, penalty: float, seed: int
) -> Array:
    scores = np.zeros((len(x), labels.max() + 1))
    for fit, test in StratifiedKFold(_FOLDS, shuffle=True, random_state=seed).split(x, labels):
        scores[test] = fit_readout(x[fit], labels[fit], directions, max_features, penalty).logits(x[test])
    return scores


def log_likelihood(scores: Array, labels: NDArray[np.int64], factor: float, weights: Array | None = None) -> float:
    """Mean log-likelihood of ``labels`` under ``softmax(factor * scores)``, scores ``[n, senses]``; nats."""
    each = log_softmax(scores * factor, axis=1)[np.arange(len(labels)), labels]
    return float(np.average(each, weights=weights))


def temperature(scores: Array, labels: NDArray[np.int64]) -> float:
    """The factor (inverse temperature) that makes out-of-fold scores most likely, within sane bounds."""
    result = minimize_scalar(
        lambda log: -log_likelihood(scores, labels, np.exp(log)), bounds=(-1.5, 1.5), method="bounded"
    )
    return float(np.exp(result.x))


def _dense_accuracy(x: Array, labels: NDArray[np.int64], test: Array, test_labels: NDArray[np.int64]) -> float:
    centre, spread = x.mean(0), x.std(0) + 1e-6
    model = LogisticRegression(C=0.01, max_iter=500).fit((x - centre) / spread, labels)
    return float((model.predict((test - centre) / spread) == test_labels).mean())
