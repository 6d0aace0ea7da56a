"""Putting the validation together: the dictionary's features, and the same for the random twin's.

Workers encode, score descriptions, look for counterparts and try fresh texts, each in files under ``parts``; what is left is
small and done here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sae_runtime.build.config import ValidationConfig
from sae_runtime.build.corpus import load_sequences, load_sources
from sae_runtime.build.features.describe import load_described
from sae_runtime.build.features.encoded import Encoded
from sae_runtime.build.features.fresh import Rates, Trial, Try, carriers, run_trials, trials
from sae_runtime.build.features.gates import (
    Split,
    Validation,
    gates,
    judge,
    read_validations,
    score,
    summary,
    write_validations,
)
from sae_runtime.build.features.predicates import Predicate
from sae_runtime.build.features.relatedness import Relatedness
from sae_runtime.build.features.stability import cosines, find_counterparts
from sae_runtime.build.features.tokens import TokenTable, Words
from sae_runtime.build.harvest import PLACES, Engine, load_counts, load_head
from sae_runtime.build.stages import Stage
from sae_runtime.build.train import load_trained
from sae_runtime.build.workers import Span, Workers, complete, spans

_SPLITS = ("validation", "test")
_LATENTS = 256  # whose descriptions a task scores


@dataclass(frozen=True)
class Candidate:
    """A described dictionary that is to be validated.

    Attributes:
        trained: the dictionary.
        again: a second training run of it.
        described: its descriptions.
        harvest: activations of the model (or its twin) that it was trained on.
        open_engine: opens what captures more of them.
    """

    trained: Stage
    again: Stage | None
    described: Stage
    harvest: Stage
    open_engine: Callable[[], Engine]


@dataclass(frozen=True)
class Score:
    """The job of scoring descriptions: ``encoded`` are the dictionary's firings on the splits."""

    encoded: dict[str, Encoded]
    described: Stage
    corpus: Stage
    words: Words

    @contextmanager
    def open(self) -> Iterator[Callable[[Span], None]]:
        """See :class:`~sae_runtime.build.workers.Job`."""
        predicates = load_described(self.described, self.words).predicates
        validation, test = (self._split(name) for name in _SPLITS)

        def scores(span: Span) -> None:
            latents = range(span.start, span.stop)
            write_validations(span.path, [score(predicates[latent], validation, test, latent) for latent in latents])

        yield scores

    def _split(self, name: str) -> Split:
        encoded, corpus = self.encoded[name], self.corpus
        places = load_head(encoded.harvest, name, encoded.rows, PLACES)
        table = TokenTable.of(self.words, places, load_sequences(corpus, name), load_sources(corpus, name)[1])
        return Split(table, encoded.load())


@dataclass(frozen=True)
class Setup:
    """What the dictionary's and the control's validation have in common.

    Attributes:
        corpus: finished corpus stage.
        words: the tokenizer's tokens as words.
        config: the gates.
        seed: of fresh texts and of random word lists.
        workers: who does the heavy work.
    """

    corpus: Stage
    words: Words
    config: ValidationConfig
    seed: int
    workers: Workers


def validate(candidate: Candidate, setup: Setup, parts: Path) -> tuple[list[Validation], dict[str, Any]]:
    """Scores and verdicts of all latents, and their summary; workers leave files in the folder ``parts``."""
    counts = load_counts(candidate.harvest)
    encoded = {name: Encoded(parts, name, candidate.trained, candidate.harvest, name, counts[name]) for name in _SPLITS}
    for one in encoded.values():
        one.make(setup.workers)
    predicates = load_described(candidate.described, setup.words).predicates
    results = _score(candidate, setup, encoded, len(predicates), parts)
    rules = gates(setup.config)
    if candidate.again is None:
        rules = [rule for rule in rules if rule[0] != "seed stability"]
    else:
        _compare(results, candidate, candidate.again, encoded["validation"], setup.workers)
    others = [rule for rule in rules if rule[0] != "sensitivity"]
    judge(results, others)
    related = Relatedness(setup.words, load_sequences(setup.corpus, "train"), setup.seed)
    passed = {
        result.index: predicate for result in results if result.passed and (predicate := predicates[result.index])
    }
    for latent, predicate in passed.items():
        results[latent].chance = related.chance(predicate.described_words)
    rates = _try_fresh_texts(candidate, setup, passed, parts)
    for latent in passed:
        results[latent].sensitivity = rates.get((latent, True))
        results[latent].context_free = rates.get((latent, False))
    judge(results, rules)
    return results, summary(results, encoded["validation"].load().counts > 0, rules)


def _score(
    candidate: Candidate, setup: Setup, encoded: dict[str, Encoded], latents: int, parts: Path
) -> list[Validation]:
    tasks = spans(parts, "scores", latents, _LATENTS, ".jsonl")
    job = Score(encoded, candidate.described, setup.corpus, setup.words)
    complete(setup.workers, job, tasks, "validate", "latents")
    return [result for task in tasks for result in read_validations(task.path)]


def _compare(results: list[Validation], candidate: Candidate, again: Stage, mine: Encoded, workers: Workers) -> None:
    """Note how each latent compares with its counterpart in the second training run."""
    other = Encoded(mine.folder, "second run", again, mine.harvest, mine.split, mine.rows)
    other.make(workers)
    index, correlation = find_counterparts(workers, mine, other, len(results), mine.folder)
    cosine = cosines(load_trained(candidate.trained), load_trained(again), index)
    for result in results:
        result.correlation = round(float(correlation[result.index]), 4)
        result.cosine = round(float(cosine[result.index]), 4)


def _try_fresh_texts(candidate: Candidate, setup: Setup, passed: dict[int, Predicate], parts: Path) -> Rates:
    beginnings = carriers(load_sequences(setup.corpus, "test"), setup.seed)
    items: list[Trial] = []
    for latent, predicate in passed.items():
        items += trials(latent, predicate, setup.words, beginnings, setup.config.fresh_texts, setup.seed)
    return run_trials(setup.workers, Try(candidate.open_engine, candidate.trained), items, parts)


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
