"""Chats of several turns, drawn before a run: who asks how much, and when."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

Length = Callable[[random.Random], int]


@dataclass(frozen=True)
class TurnSize:
    """Tokens that the user adds, tokens of the answer, tokens of the note when something is flagged (0: nothing is), and
    seconds until the user asks next."""

    asked: int
    answered: int
    note: int
    pause: float


@dataclass(frozen=True)
class Chat:
    """A conversation: its number, when it begins, its turns."""

    number: int
    begins: float
    turns: tuple[TurnSize, ...]


def fixed(tokens: int) -> Length:
    """Always the same."""
    return lambda rng: tokens


def lognormal(median: float, sigma: float, largest: int) -> Length:
    """Mostly small, sometimes large."""
    return lambda rng: max(1, min(largest, round(median * rng.lognormvariate(0, sigma))))


def exponential(mean: float) -> Length:
    """Without memory."""
    return lambda rng: max(1, round(rng.expovariate(1 / mean)))


@dataclass(frozen=True)
class Traffic:
    """What people do.

    The defaults are assumptions, not measurements: first turns of some 100 tokens (the chat template's among them), some of
    many hundred; answers of some 60; two or three turns, with ten seconds to read and type between them; a mention in every
    prompt, and something flagged in every tenth.
    """

    asked: Length = field(default_factory=lambda: lognormal(100, 0.9, 1_500))
    answered: Length = field(default_factory=lambda: lognormal(60, 0.6, 256))
    turns: float = 2.5
    pause: float = 10.0
    flagged: float = 0.1
    note: int = 40

    def chats(self, rate: float, seconds: float, seed: int) -> list[Chat]:
        """Chats that begin at random times, ``rate`` per second on average, for so many seconds.

        The same seed gives the same chats at other times when the rate is another one.
        """
        sizes, times = random.Random(seed), random.Random(seed + 1)
        chats, now = [], times.expovariate(1.0) / rate
        while now < seconds:
            count = 1
            while sizes.random() > 1 / self.turns:
                count += 1
            chats.append(Chat(len(chats), now, tuple(self._turn(sizes) for _ in range(count))))
            now += times.expovariate(1.0) / rate
        return chats

    def _turn(self, rng: random.Random) -> TurnSize:
        note = self.note if rng.random() < self.flagged else 0
        return TurnSize(self.asked(rng), self.answered(rng), note, rng.expovariate(1.0) * self.pause)
