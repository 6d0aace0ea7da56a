"""Putting the validation together: the dictionary's features, and the same for the random twin's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sae_runtime.build.config import ValidationConfig
from sae_runtime.build.corpus import load_sequences, load_sources
from sae_runtime.build.features.firings import Firings
from sae_runtime.build.features.fresh import carriers, run_trials, trials
from sae_runtime.build.features.gates import Split, Validation, gates, judge, score, summary
from sae_runtime.build.features.predicates import Predicate
from sae_runtime.build.features.relatedness import Relatedness
from sae_runtime.build.features.stability import cosines, counterparts
from sae_runtime.build.features.tokens import TokenTable, Words
from sae_runtime.build.harvest import Engine, load_residual
from sae_runtime.build.stages import Stage
from sae_runtime.progress import progress
from sae_runtime.sae import SAE


@dataclass(frozen=True)
class Candidate:
    """A described dictionary that is to be validated.

    Attributes:
        sae: the dictionary.
        again: a second training run of it.
        predicates: descriptions by latent.
        harvest: activations of the model (or its twin) that it was trained on.
        engine: captures more of them.
    """

    sae: SAE
    again: SAE | None
    predicates: list[Predicate | None]
    harvest: Stage
    engine: Engine


def validate(
    candidate: Candidate, corpus: Stage, words: Words, config: ValidationConfig, seed: int
) -> tuple[list[Validation], dict[str, Any]]:
    """Scores and verdicts of all latents, and their summary."""
    splits = {name: _split(candidate, corpus, words, name) for name in ("validation", "test")}
    results = score(candidate.predicates, splits["validation"], splits["test"])
    rules = gates(config)
    if candidate.again is None:
        rules = [rule for rule in rules if rule[0] != "seed stability"]
    else:
        _compare(results, candidate, splits["validation"].firings)
    others = [rule for rule in rules if rule[0] != "sensitivity"]
    judge(results, others)
    related = Relatedness(words, load_sequences(corpus, "train"), seed)
    for result, predicate in zip(results, candidate.predicates, strict=True):
        if result.passed and predicate is not None:
            result.chance = related.chance(predicate.described_words)
    _try_fresh_texts(candidate, [r for r in results if r.passed], corpus, words, config, seed)
    judge(results, rules)
    return results, summary(results, splits["validation"].firings.counts > 0, rules)


def _split(candidate: Candidate, corpus: Stage, words: Words, name: str) -> Split:
    data = load_residual(candidate.harvest, name)
    table = TokenTable.of(words, data, load_sequences(corpus, name), load_sources(corpus, name)[1])
    with progress(f"firings, {name}", len(table)) as advance:
        return Split(table, Firings.collect(candidate.sae, data["residual"], advance))


def _compare(results: list[Validation], candidate: Candidate, firings: Firings) -> None:
    """Note how each latent compares with its counterpart in the second training run."""
    assert candidate.again is not None  # noqa: S101 (the caller asked)
    residual = load_residual(candidate.harvest, "validation")["residual"]
    with progress("firings, second run", len(residual)) as advance:
        others = Firings.collect(candidate.again, residual, advance)
    index, correlation = counterparts(firings, others)
    cosine = cosines(candidate.sae, candidate.again, index)
    for result in results:
        result.correlation = round(float(correlation[result.index]), 4)
        result.cosine = round(float(cosine[result.index]), 4)


def _try_fresh_texts(
    candidate: Candidate, chosen: list[Validation], corpus: Stage, words: Words, config: ValidationConfig, seed: int
) -> None:
    beginnings = carriers(load_sequences(corpus, "test"), seed)
    items = []
    for result in chosen:
        predicate = candidate.predicates[result.index]
        if predicate is not None:
            items += trials(result.index, predicate, words, beginnings, config.fresh_texts, seed)
    rates = run_trials(candidate.engine, candidate.sae, items)
    for result in chosen:
        result.sensitivity = rates.get((result.index, True))
        result.context_free = rates.get((result.index, False))


def context_figures(results: list[Validation]) -> dict[str, float]:
    """Token injection: how often features fire with the described context and on the words alone."""
    paired = [r for r in results if r.sensitivity is not None and r.context_free is not None]
    if not paired:
        return {}
    return {
        "features_with_context": len(paired),
        "fires_in_context": float(np.mean([r.sensitivity for r in paired])),
        "fires_on_words_alone": float(np.mean([r.context_free for r in paired])),
    }
