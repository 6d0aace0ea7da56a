"""The intended sense from the surrounding words or a declared domain: a source that never looks inside the model."""

from __future__ import annotations

import math
import re
from functools import lru_cache

import snowballstemmer

from sae_runtime.catalog.view import Concept

# Log-odds that a declared domain adds to its senses. Strong, but three clear cues for another sense outweigh it.
DOMAIN_LOGIT = 4.0
_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)?")
_stemmer = snowballstemmer.stemmer("english")


@lru_cache(maxsize=65_536)
def stem(word: str) -> str:
    """Snowball stem of a lower-cased word."""
    return _stemmer.stemWord(word)


def context_stems(text: str, start: int, end: int) -> dict[str, str]:
    """Stems of all words of ``text`` outside the mention ``text[start:end]``, each with a word that has it."""
    words = [m[0].lower() for m in _WORD.finditer(text) if m.end() <= start or m.start() >= end]
    return {stem(word): word for word in reversed(words)}


def intended_senses(
    concept: Concept, text: str, start: int, end: int, domain: str | None = None
) -> tuple[dict[str, float], dict[str, list[str]]]:
    """Probability of each sense by the text around the mention and the deployer's ``domain``.

    A sense's score is the sum of its cue weights over the distinct stems of the text, plus :data:`DOMAIN_LOGIT` when
    the domain is one of its own, or when the deployer's glossary declares the sense; softmax over the senses. Without any
    evidence all senses are equally likely.

    Returns:
        Probabilities by sense, and the evidence by sense: words in order of weight, domain or glossary first.
    """
    words = context_stems(text, start, end)
    scores: list[float] = []
    evidence: dict[str, list[str]] = {}
    for sense in concept.senses:
        hits = sorted((sense.cues[key], word) for key, word in words.items() if key in sense.cues)
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


def softmax(scores: list[float]) -> list[float]:
    """Probabilities proportional to ``exp(score)``."""
    top = max(scores)
    powers = [math.exp(score - top) for score in scores]
    total = sum(powers)
    return [power / total for power in powers]
