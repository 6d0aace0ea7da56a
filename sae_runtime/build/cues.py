"""Fitting the text matcher: how strongly a word in the surroundings speaks for a sense.

Evidence comes from the packs alone: a sense's cue list and the words of its fit contexts. A stem's weight for a sense
is the smoothed log-odds of meeting it with this sense rather than with the others (naive Bayes); a listed cue counts
as if it had been seen in several contexts. Stems that occur with two senses alike, and function words, get no weight.
"""

from __future__ import annotations

import math

from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

from sae_runtime.catalog.packs import ConceptPack
from sae_runtime.detector.context import context_stems, stem

_CUE_COUNT = 4.0  # a listed cue weighs as much as this many contexts that contain it
_SMOOTHING = 0.5
_MIN_WEIGHT = 0.4
# Words that carry grammar rather than topic. Contexts are few, so their chance imbalances would pass for evidence.
_FUNCTION_WORDS = frozenset(stem(word) for word in ENGLISH_STOP_WORDS)


def fit_cues(concept: ConceptPack) -> dict[str, dict[str, float]]:
    """Cue weights by sense and stem."""
    counts: dict[str, dict[str, float]] = {name: {} for name in concept.senses}
    totals: dict[str, float] = {}
    own = {stem(word) for form in concept.forms for word in form.lower().split()}
    for name, sense in concept.senses.items():
        contexts = sense.labelled(held_out=False)
        totals[name] = len(contexts)
        for context in contexts:
            for key in context_stems(context.text, context.start, context.end):
                counts[name][key] = counts[name].get(key, 0.0) + 1.0
        for cue in sense.cues:
            key = stem(cue.lower())
            counts[name][key] = counts[name].get(key, 0.0) + _CUE_COUNT
    stems = set().union(*counts.values()) - _FUNCTION_WORDS - own
    return {name: _weights(name, sorted(stems), counts, totals) for name in concept.senses}


def _weights(
    name: str, stems: list[str], counts: dict[str, dict[str, float]], totals: dict[str, float]
) -> dict[str, float]:
    others = [other for other in counts if other != name]
    weights = {}
    for key in stems:
        here = (counts[name].get(key, 0.0) + _SMOOTHING) / (totals[name] + 2 * _SMOOTHING)
        elsewhere = max((counts[o].get(key, 0.0) + _SMOOTHING) / (totals[o] + 2 * _SMOOTHING) for o in others)
        weight = math.log(here / elsewhere)
        if weight >= _MIN_WEIGHT:
            weights[key] = round(weight, 3)
    return weights
