"""What a replica's steps, requests and readings take, in seconds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EngineCost:
    """Seconds, but for ``free``.

    ``floor``: a step of up to ``free`` tokens, whose time goes into reading the weights. ``token``: each token beyond.
    ``pair``: a prompt token's attention to one before it, ``context``: the same of a token that is generated. ``sequence``:
    each prompt or answer in the step beyond the first. ``request``: around the engine (HTTP, template, tokens, first chunk), one
    request after the other in the API server's event loop.
    """

    floor: float
    free: float
    token: float
    pair: float
    context: float
    sequence: float
    request: float

    def step(self, tokens: int, sequences: int, pairs: float, context: float) -> float:
        """A step that computes ``tokens`` of ``sequences`` prompts and answers.

        Args:
            tokens: of prompts and answers together.
            sequences: how many.
            pairs: of prompt tokens; see :func:`pairs`.
            context: tokens behind those that are generated.
        """
        return (
            self.floor
            + self.token * max(0.0, tokens - self.free)
            + self.sequence * max(0, sequences - 1)
            + self.pair * pairs
            + self.context * context
        )


@dataclass(frozen=True)
class ReadingCost:
    """Seconds of a reading that depend on the prompt: ``_base`` plus ``_token`` for each token of it.

    ``plan`` and ``judge`` take turns on the server's one reading thread; ``encode`` makes the engine's step longer.
    """

    plan_base: float = 0.0
    plan_token: float = 0.0
    encode_base: float = 0.0
    encode_token: float = 0.0
    judge_base: float = 0.0
    judge_token: float = 0.0

    def plan(self, tokens: int) -> float:
        """Finding the mentions of a prompt."""
        return self.plan_base + self.plan_token * tokens

    def encode(self, tokens: int) -> float:
        """Encoding what they need."""
        return self.encode_base + self.encode_token * tokens

    def judge(self, tokens: int) -> float:
        """Judging them."""
        return self.judge_base + self.judge_token * tokens


@dataclass(frozen=True)
class Costs:
    """All that the simulation knows of time."""

    engine: EngineCost
    reading: ReadingCost


def pairs(start: int, stop: int) -> float:
    """Pairs of a token and one that it attends to, for the tokens from ``start`` to ``stop`` of one prompt."""
    return (stop * stop - start * start) / 2
