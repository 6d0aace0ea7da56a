"""Fresh texts: words put where the corpus never had them, to see whether a description causes what it claims.

A description found in a corpus may rest on what happens to go together there. So its words are put behind the beginnings of
texts that have nothing to do with them. A latent that is described rightly fires there too (*sensitivity*, cf. Tian et
al. 2025). Where the description wants a word before, the words alone are tried as well: if they fire the latent as often, the
context in the description is idle (cf. the token injection of Ma et al. 2026).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sae_runtime.build.features.predicates import Predicate
from sae_runtime.build.features.tokens import Words
from sae_runtime.build.harvest import Engine
from sae_runtime.progress import progress
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


def run_trials(engine: Engine, sae: SAE, items: Sequence[Trial]) -> dict[tuple[int, bool], float]:
    """Share of trials that fired, by latent and whether the described context was there."""
    hits: dict[tuple[int, bool], list[bool]] = {}
    ordered = sorted(items, key=lambda item: len(item.tokens))
    with progress("fresh texts", len(ordered)) as advance:
        for start in range(0, len(ordered), _BATCH):
            batch = ordered[start : start + _BATCH]
            for item, residual in zip(batch, engine.residual([item.tokens for item in batch]), strict=True):
                fired = bool((_activations(sae, residual[item.look :], item.latent) > 0).any())
                hits.setdefault((item.latent, item.with_context), []).append(fired)
            advance(len(batch))
    return {key: sum(values) / len(values) for key, values in hits.items()}


def _activations(sae: SAE, residual: Tensor, latent: int) -> Tensor:
    return sae.encode(residual, torch.tensor([latent]))
