"""Fresh texts: words put where the corpus never had them, to see whether a description causes what it claims.

A description found in a corpus may rest on what happens to go together there. So its words are put behind the beginnings of
texts that have nothing to do with them. A latent that is described rightly fires there too (*sensitivity*, cf. Tian et
al. 2025). Where the description wants a word before, the words alone are tried as well: if they fire the latent as often, the
context in the description is idle (cf. the token injection of Ma et al. 2026).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from sae_runtime.build.features.predicates import Predicate
from sae_runtime.build.features.tokens import Words
from sae_runtime.build.harvest import Engine
from sae_runtime.build.stages import Stage, read_tensors, write_tensors
from sae_runtime.build.train import load_trained
from sae_runtime.build.workers import Workers, complete
from sae_runtime.sae import SAE

_CARRIER = 12  # tokens of the unrelated beginning
_TAIL = 6  # tokens after the word, on which a topic may still show
_BATCH = 128


@dataclass(frozen=True)
class Trial:
    """One fresh text for one latent: it counts when the latent fires at ``look`` or later."""

    latent: int
    tokens: list[int]
    look: int
    with_context: bool


def trials(
    latent: int, predicate: Predicate, words: Words, carriers: Sequence[list[int]], count: int, seed: int
) -> list[Trial]:
    """``count`` texts that fit ``predicate``, and as many of its words alone where it wants a word before them."""
    rng = random.Random(seed * 1_000_003 + latent)
    examples = predicate.examples
    result = []
    for number in range(count if examples else 0):
        before, word = examples[number % len(examples)]
        carrier = rng.choice(carriers)
        head = carrier[:_CARRIER]
        tail = carrier[_CARRIER : _CARRIER + _TAIL] if predicate.family == "topic" else []
        last = [words.token[word], *tail]
        if before >= 0:
            result.append(Trial(latent, [*head, *last], len(head), with_context=False))
            head = [*head, words.token[before]]
        result.append(Trial(latent, [*head, *last], len(head), with_context=True))
    return result


def carriers(sequences: Sequence[list[int]], seed: int, count: int = 512) -> list[list[int]]:
    """Beginnings of texts, long enough to carry something."""
    long = [ids for ids in sequences if len(ids) >= _CARRIER + _TAIL]
    return random.Random(seed).sample(long, min(count, len(long)))


Rates = dict[tuple[int, bool], float]


@dataclass(frozen=True)
class TrialBatch:
    """A task: trials of about one length, which go through the model together."""

    path: Path
    trials: Sequence[Trial]

    @property
    def size(self) -> int:
        """Trials."""
        return len(self.trials)


@dataclass(frozen=True)
class Try:
    """The job of trying fresh texts on the dictionary ``trained``."""

    open_engine: Callable[[], Engine]
    trained: Stage

    @contextmanager
    def open(self) -> Iterator[Callable[[TrialBatch], None]]:
        """See :class:`~sae_runtime.build.workers.Job`."""
        engine, sae = self.open_engine(), load_trained(self.trained)
        try:
            yield lambda batch: write_tensors(batch.path, {"fired": torch.tensor(fired(engine, sae, batch.trials))})
        finally:
            engine.close()


def run_trials(workers: Workers, job: Try, items: Sequence[Trial], folder: Path) -> Rates:
    """Share of trials that fired, by latent and whether the described context was there; files are left in ``folder``."""
    ordered = sorted(items, key=lambda item: len(item.tokens))
    tasks = [
        TrialBatch(folder / f"fresh-{number:04d}.safetensors", ordered[start : start + _BATCH])
        for number, start in enumerate(range(0, len(ordered), _BATCH))
    ]
    complete(workers, job, tasks, "fresh texts")
    return rates(ordered, [hit for task in tasks for hit in read_tensors(task.path)["fired"].tolist()])


def rates(items: Sequence[Trial], hits: Sequence[bool]) -> Rates:
    """Share of hits, by latent and whether the described context was there."""
    found: dict[tuple[int, bool], list[bool]] = {}
    for item, hit in zip(items, hits, strict=True):
        found.setdefault((item.latent, item.with_context), []).append(hit)
    return {key: sum(values) / len(values) for key, values in found.items()}


def fired(engine: Engine, sae: SAE, batch: Sequence[Trial]) -> list[bool]:
    """Of each trial whether its latent fired."""
    streams = zip(batch, engine.residual([item.tokens for item in batch]), strict=True)
    return [bool((sae.encode(x[item.look :], torch.tensor([item.latent])) > 0).any()) for item, x in streams]
