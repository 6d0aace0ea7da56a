"""Few-shot signatures: from a glossary's sentences to concepts that the detector can read, in seconds.

The sentences of a term (its examples and counterexamples, and a few made from its meanings) are read once. A ridge
regression in its dual form, over as few sentences as there are, finds the direction in feature space that tells the
meant from any other reading. Its leave-one-out predictions, which cost nothing more (Allen 1974), say whether the
examples can be told apart at all. What its scores are worth as probabilities cannot be learnt from so few sentences: that
was measured on the packs' concepts (``benchmarks/glossary.py``) and is the same for all terms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from sae_runtime.catalog.view import Concept, Sense
from sae_runtime.engines.features import PromptFeatures
from sae_runtime.glossary.terms import Glossary, Term

if TYPE_CHECKING:  # the detector's package imports this module
    from sae_runtime.detector.detector import Detector, Plan

Array = NDArray[np.float64]

MEANT, OTHER = "meant", "otherwise"
SITE: Final = "rest"  # where most of the catalog's concepts are read best, too
MIN_ACCURACY = 0.75  # leave-one-out, of the examples; a term that is read worse never flags
MIN_EXAMPLES = 3  # on each side, from which that is asked
# Two of a hundred sentences that mean the term as meant are read as less, with any number of examples (fit contexts of
# every fourth concept, small model).
READ_BELOW, INTENDED_ABOVE = 0.1, 0.7
_RIDGE = 0.1  # of the mean squared norm of a centred sentence

# Sentences for a meaning in words. The mention is the last occurrence of the term.
_CARRIERS = (
    "This is about {meaning}. We talked about the {term}.",
    "The {term}, that is, {meaning}: tell me more about the {term}.",
    "{meaning} came up again. What should I know about the {term}?",
)


@dataclass(frozen=True)
class LabelledText:
    """A sentence, where the term stands in it, whether it is meant there, and whether the deployer gave it."""

    text: str
    start: int
    end: int
    meant: bool
    given: bool


def sentences(term: Term) -> list[LabelledText]:
    """What a term's signature is fitted to."""
    texts = [(text, True, True) for text in term.examples] + [(text, False, True) for text in term.counterexamples]
    texts += [(_carried(carrier, term.meaning, term), True, False) for carrier in _CARRIERS]
    texts += [(_carried(carrier, meaning, term), False, False) for meaning in term.otherwise for carrier in _CARRIERS]
    placed = [(text, term.mention(text), meant, given) for text, meant, given in texts]
    return [LabelledText(text, *place, meant, given) for text, place, meant, given in placed if place]


def plans(detector: Detector, glossary: Glossary) -> list[list[Plan]]:
    """What has to be read for each term's sentences, in the order of :func:`sentences`."""
    return [
        [detector.plan([{"role": "user", "content": item.text}], read=[], tokens=True) for item in sentences(term)]
        for term in glossary.terms
    ]


def with_glossary(
    detector: Detector,
    glossary: Glossary,
    planned: Sequence[Sequence[Plan]],
    features: Sequence[Sequence[PromptFeatures]],
) -> Detector:
    """A detector that also reads the glossary's terms, instead of catalog concepts that share a form with them.

    Args:
        detector: of the catalog alone.
        glossary: the terms.
        planned: from :func:`plans`.
        features: of those plans.
    """
    from sae_runtime.detector.sites import site_tokens

    concepts = []
    for term, term_plans, term_features in zip(glossary.terms, planned, features, strict=True):
        texts = sentences(term)
        pooled = np.stack(
            [
                found.pooled(site_tokens(SITE, plan.chat.spans, 0, text.start, text.end), detector.width)
                for text, plan, found in zip(texts, term_plans, term_features, strict=True)
            ]
        )
        concepts.append(fit_term(term, texts, pooled))
    return detector.with_concepts(concepts)


def fit_term(term: Term, texts: Sequence[LabelledText], pooled: Array) -> Concept:
    """A term as a concept of two senses.

    Args:
        term: the term.
        texts: its sentences.
        pooled: their features ``[n, latents]``.
    """
    meant = np.array([text.meant for text in texts])
    given = np.array([text.given for text in texts])
    weights, bias, left_out = dual_ridge(pooled, np.where(meant, 1.0, -1.0))
    examples = int(min((given & meant).sum(), (given & ~meant).sum()))
    slope = _slope(examples)
    right = (left_out > 0) == meant
    # Both sides weigh the same here, too: with ten counterexamples to three examples, "never" is right ten times.
    sides = [right[given & side].mean() for side in (meant, ~meant) if (given & side).any()]
    accuracy = float(np.mean(sides)) if sides else 0.0
    used = np.flatnonzero(np.abs(weights) > 1e-9)
    trusted = accuracy >= MIN_ACCURACY or examples < MIN_EXAMPLES

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
    # As refitting without the row, which also moves the centre and the mean label (the last term).
    left_out = y - dual / (inverse.diagonal() - balance**2 * len(y) / ridge)
    weights = centred.T @ dual
    return weights, middle - float(centre @ weights), left_out


def _slope(examples: int) -> float:
    """The factor that turns scores into log-odds, by the number of examples per side: fitted on the packs' concepts (2.2,
    5.1 and 5.6 at 0, 4 and 8), interpolated between."""
    return 2.2 + 3.4 * examples / (examples + 0.7)


def _carried(carrier: str, meaning: str, term: Term) -> str:
    text = carrier.format(meaning=meaning.strip().rstrip("."), term=term.term)
    return text[0].upper() + text[1:]
