"""Conversations that people might have: several turns, short and long ones, with catalogued words in many of them.

All texts are the project's own: prompts with planted senses, and contexts of the concept packs as pasted material.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from sae_runtime.catalog.packs import load_packs
from sae_runtime.evaluation.prompts import planted_prompts

_SETS = ("examples", "test", "dev")
_FOLLOW_UPS = (
    "Thanks. Please put that in two sentences.",
    "Why do you think so?",
    "Could you explain that to a ten-year-old?",
    "What would be the first step?",
    "And what if I have no time for that this week?",
    "Which of these would you choose, and why?",
)
_TURNS = {2: 0.4, 3: 0.4, 4: 0.2}  # share of conversations by number of turns
_FOLLOW_UP = 0.3  # share of the later turns that only ask for more, without a planted word
_PASTED = {0: 0.6, 4: 0.3, 20: 0.1}  # share of first turns by number of pasted sentences of some 20 tokens each


@dataclass(frozen=True)
class Turn:
    """What the user says, and the domain that the deployer declares for it."""

    text: str
    domain: str | None


@dataclass(frozen=True)
class Chat:
    """What the user says, turn by turn; the answers are the model's."""

    turns: tuple[Turn, ...]


def chats(count: int, seed: int) -> list[Chat]:
    """``count`` conversations; the same for the same seed."""
    rng = random.Random(seed)
    return [_chat(rng, _asked(), _sentences()) for _ in range(count)]


@cache
def _asked() -> tuple[Turn, ...]:
    return tuple(Turn(prompt.prompt, prompt.domain) for name in _SETS for prompt in planted_prompts(name))


@cache
def _sentences() -> tuple[str, ...]:
    return tuple(
        context.text
        for concepts in load_packs().values()
        for concept in concepts
        for sense in concept.senses.values()
        for context in sense.labelled(held_out=False)
    )


def _chat(rng: random.Random, asked: Sequence[Turn], sentences: Sequence[str]) -> Chat:
    first, *later = rng.sample(asked, _pick(rng, _TURNS))
    pasted = rng.sample(sentences, _pick(rng, _PASTED))
    if pasted:
        first = Turn("\n".join(["These are my notes so far:", *pasted, "", first.text]), first.domain)
    return Chat((first, *(_or_follow_up(rng, turn) for turn in later)))


def _or_follow_up(rng: random.Random, turn: Turn) -> Turn:
    return Turn(rng.choice(_FOLLOW_UPS), None) if rng.random() < _FOLLOW_UP else turn


def _pick(rng: random.Random, shares: dict[int, float]) -> int:
    return rng.choices(list(shares), list(shares.values()))[0]
