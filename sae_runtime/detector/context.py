"""The intended sense from the words that follow, a declared domain or the user's pick: it never looks inside the model.

Only words *after* the mention count as textual evidence. Those before it are what a reader is led by, rightly or not: on
prompts whose later words overturn the earlier ones (the ``dev`` set of :mod:`sae_runtime.evaluation.prompts`), a matcher of
all words that was sure of a sense was right in 33 % of cases, one of the later words in 97 %; on plain prompts both in at least
99 %. Without later words the source is unsure, and nothing is flagged. What the words before say has another use:
:func:`told_senses`.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from functools import lru_cache

import snowballstemmer

from sae_runtime.catalog.view import Concept

# Log-odds that a declared domain adds to its senses. Strong, but three clear cues for another sense outweigh it.
DOMAIN_LOGIT = 4.0
PICKED = "your choice"
SECONDED = "what the model makes of it later"
"""Evidence beside the words, where the late reading seconds them."""
MAX_WORD = 64
"""Characters of the longest word that counts as one: stems of longer ones are neither computed nor remembered."""
_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)?")
_stemmer = snowballstemmer.stemmer("english")


@lru_cache(maxsize=65_536)
def stem(word: str) -> str:
    """Snowball stem of a lower-cased word."""
    return _stemmer.stemWord(word)


Places = dict[str, list[tuple[int, str]]]
"""Where stems stand in a text: per stem the places and words that have it, in order."""


def stem_places(text: str) -> Places:
    """All words of ``text`` by their stem. Made once per message, so that many mentions do not each read the whole text."""
    places: Places = {}
    for match in _WORD.finditer(text):
        if match.end() - match.start() <= MAX_WORD:
            word = match[0].lower()
            places.setdefault(stem(word), []).append((match.start(), word))
    return places


def context_stems(text: str, start: int, end: int) -> set[str]:
    """Stems of all words of ``text`` outside the mention ``text[start:end]``."""
    later = {key for key, found in stem_places(text).items() if found[-1][0] >= end}
    return {*stem_places(text[:start]), *later}


def intended_senses(
    concept: Concept, places: Places, end: int, domain: str | None = None, picked: str | None = None
) -> tuple[dict[str, float], dict[str, list[str]]]:
    """Probability of each sense by the words after the mention and the deployer's ``domain``.

    A sense's score is the sum of its cue weights over the distinct stems after the mention, plus :data:`DOMAIN_LOGIT` when
    the domain is one of its own, or when the deployer's glossary declares the sense; softmax over the senses. Without any
    evidence all senses are equally likely. A sense that the user ``picked`` is certain, whatever else is said.

    Args:
        concept: what is mentioned.
        places: of the message, from :func:`stem_places`.
        end: where the mention ends.
        domain: the declared domain.
        picked: slug of the sense that the user chose.

    Returns:
        Probabilities by sense, and the evidence by sense: words in order of weight, domain or glossary first.
    """
    if picked is not None:
        names = [sense.slug for sense in concept.senses]
        return {name: float(name == picked) for name in names}, {name: [PICKED] * (name == picked) for name in names}
    scores: list[float] = []
    evidence: dict[str, list[str]] = {}
    for sense in concept.senses:
        hits = sorted((weight, word) for key, weight in sense.cues.items() if (word := _first_after(places, key, end)))
        score = sum(weight for weight, _ in hits)
        reasons = [word for weight, word in reversed(hits) if weight > 0]
        if domain is not None and domain.lower() in sense.domains:
            score += DOMAIN_LOGIT
            reasons.insert(0, f"domain: {domain.lower()}")
        if sense.slug == concept.declared:
            score += DOMAIN_LOGIT
            reasons.insert(0, "glossary")
        scores.append(score)
        evidence[sense.slug] = reasons
    return dict(zip(evidence, softmax(scores), strict=True)), evidence


def told_senses(concept: Concept, places: Places, start: int) -> dict[str, float]:
    """Probability of each sense by the words before the mention alone: what a reader has been told when he comes to it.

    Args:
        concept: what is mentioned.
        places: of the message, from :func:`stem_places`.
        start: where the mention begins.
    """
    scores = [
        sum(weight for key, weight in sense.cues.items() if key in places and places[key][0][0] < start)
        for sense in concept.senses
    ]
    return dict(zip((sense.slug for sense in concept.senses), softmax(scores), strict=True))


def is_declared(concept: Concept, domain: str | None) -> bool:
    """Whether the deployer's glossary or ``domain`` says which sense of ``concept`` is meant."""
    return concept.declared is not None or (
        domain is not None and any(domain.lower() in sense.domains for sense in concept.senses)
    )


def _first_after(places: Places, key: str, end: int) -> str | None:
    """The first word with the stem ``key`` from ``end`` on."""
    found = places.get(key)
    if not found or found[-1][0] < end:
        return None
    return found[bisect_left(found, (end, ""))][1]


def softmax(scores: list[float]) -> list[float]:
    """Probabilities proportional to ``exp(score)``."""
    top = max(scores)
    powers = [math.exp(score - top) for score in scores]
    total = sum(powers)
    return [power / total for power in powers]
