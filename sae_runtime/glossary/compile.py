"""Few-shot signatures: from a glossary's sentences to concepts that the detector can read, in seconds.

The sentences of a term (its examples and counterexamples, and a few made from its meanings) are read once. A ridge
regression in its dual form, over as few sentences as there are, finds the direction in feature space that tells the
meant from any other reading; its leave-one-out predictions, which cost nothing more (Allen 1974), calibrate it and
say how far it can be trusted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from sae_runtime.catalog.view import Concept, Sense
from sae_runtime.detector.detector import Detector, Plan
from sae_runtime.detector.sites import site_tokens
from sae_runtime.engines.features import PromptFeatures
from sae_runtime.glossary.terms import Glossary, Term

Array = NDArray[np.float64]

MEANT, OTHER = "as meant", "otherwise"
SITE = "rest"  # where most of the catalog's concepts are read best, too
MIN_ACCURACY = 0.75  # leave-one-out; a term that is read worse never flags
READ_BELOW, INTENDED_ABOVE = 0.4, 0.7
_RIDGE = 0.1  # of the mean squared norm of a centred sentence
_SHARPEST = 30.0  # largest slope that calibration may give scores of about one

# Sentences for a meaning in words. The mention is the last occurrence of the term.
_CARRIERS = (
    "This is about {meaning}. We talked about the {term}.",
    "The {term}, that is, {meaning}: tell me more about the {term}.",
    "{meaning} came up again. What should I know about the {term}?",
)


@dataclass(frozen=True)
class LabelledText:
    """A sentence, where the term stands in it, and whether it is meant there."""

    text: str
    start: int
    end: int
    meant: bool


def sentences(term: Term) -> list[LabelledText]:
    """What a term's signature is fitted to."""
    texts = [(text, True) for text in term.examples] + [(text, False) for text in term.counterexamples]
    texts += [(_carried(carrier, term.meaning, term), True) for carrier in _CARRIERS]
    texts += [(_carried(carrier, meaning, term), False) for meaning in term.otherwise for carrier in _CARRIERS]
    placed = [(text, term.mention(text), meant) for text, meant in texts]
    return [LabelledText(text, *place, meant) for text, place, meant in placed if place]


def plans(detector: Detector, glossary: Glossary) -> list[list[Plan]]:
    """What has to be read for each term's sentences, in the order of :func:`sentences`."""
    return [
        [detector.plan([{"role": "user", "content": item.text}], read=[], tokens=True) for item in sentences(term)]
        for term in glossary.terms
    ]


def with_glossary(
    detector: Detector, glossary: Glossary, planned: Sequence[Sequence[Plan]], features: Sequence[Sequence[PromptFeatures]]
) -> Detector:
    """A detector that also reads the glossary's terms, instead of catalog concepts that share a form with them.

    Args:
        detector: of the catalog alone.
        glossary: the terms.
        planned: from :func:`plans`.
        features: of those plans.
    """
    concepts = []
    for term, term_plans, term_features in zip(glossary.terms, planned, features, strict=True):
        texts = sentences(term)
        pooled = np.stack(
            [
                found.pooled(site_tokens(SITE, plan.chat.spans, 0, text.start, text.end), detector.width)
                for text, plan, found in zip(texts, term_plans, term_features, strict=True)
            ]
        )
        concepts.append(fit_term(term, pooled, np.array([text.meant for text in texts])))
    return detector.with_concepts(concepts)


def fit_term(term: Term, pooled: Array, meant: NDArray[np.bool_]) -> Concept:
    """A term as a concept of two senses.

    Args:
        term: the term.
        pooled: features of its sentences ``[n, latents]``.
        meant: which of them use it as meant, ``[n]``.
    """
    weights, bias, left_out = dual_ridge(pooled, np.where(meant, 1.0, -1.0))
    slope = _slope(left_out, meant)
    accuracy = float(((left_out > 0) == meant).mean())
    used = np.flatnonzero(np.abs(weights) > 1e-9)
    trusted = accuracy >= MIN_ACCURACY

    def sense(slug: str, gloss: str, sign: float) -> Sense:
        return Sense(
            slug=slug,
            gloss=gloss,
            note=term.note_text,
            domains=frozenset(),
            bias=sign * slope * bias / 2,
            weights={int(latent): sign * slope * float(weights[latent]) / 2 for latent in used},
            cues={},
        )

    return Concept(
        slug=term.slug,
        pack="glossary",
        forms=term.all_forms,
        site=SITE,
        accuracy=accuracy,
        text_accuracy=None,
        read_below=READ_BELOW if trusted else -1.0,
        intended_above=INTENDED_ABOVE if trusted else 2.0,
        senses=(sense(MEANT, term.meaning, 1.0), sense(OTHER, "; ".join(term.otherwise), -1.0)),
        declared=MEANT,
    )


def dual_ridge(x: Array, y: Array) -> tuple[Array, float, Array]:
    """Ridge regression of ``y`` ``[n]`` on ``x`` ``[n, m]`` with an intercept, solved in the space of rows.

    Both classes weigh the same, however many rows each has.

    Returns:
        Weights ``[m]``, intercept, and the leave-one-out predictions ``[n]``.
    """
    balance = np.where(y > 0, 0.5 / max(1, (y > 0).sum()), 0.5 / max(1, (y <= 0).sum()))
    centre = balance @ x
    centred = x - centre
    kernel = centred @ centred.T
    ridge = _RIDGE * max(1e-9, float(kernel.diagonal().mean()))
    # Rows of weight w have their share of the ridge divided by w (times n, so that the mean weight is one).
    inverse = np.linalg.inv(kernel + np.diag(ridge / (balance * len(y))))
    middle = float(balance @ y)
    dual = inverse @ (y - middle)
    left_out = y - dual / inverse.diagonal()
    weights = centred.T @ dual
    return weights, middle - float(centre @ weights), left_out


def _slope(scores: Array, meant: NDArray[np.bool_]) -> float:
    """The factor on ``scores`` that makes the labels most likely under a logistic curve, within sane bounds."""
    signed = np.where(meant, scores, -scores)
    result = minimize_scalar(
        lambda log: float(np.logaddexp(0, -np.exp(log) * signed).mean()),
        bounds=(np.log(0.5), np.log(_SHARPEST)),
        method="bounded",
    )
    return float(np.exp(result.x))


def _carried(carrier: str, meaning: str, term: Term) -> str:
    text = carrier.format(meaning=meaning.strip().rstrip("."), term=term.term)
    return text[0].upper() + text[1:]
