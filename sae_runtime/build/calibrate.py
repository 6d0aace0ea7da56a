"""Calibrating the misread rule on written prompts with planted senses (:data:`~sae_runtime.evaluation.prompts.CALIBRATION_SETS`).

One set of thresholds bounds all concepts: the one with the highest recall among those that keep two limits, ties broken by
precision and then by stricter thresholds. The rate of false flags on plain prompts, with its standard error added, must be within
:data:`MAX_FALSE_FLAGS`; flags on the other prompts must name the planted sense in at least :data:`MIN_PRECISION`. Both leave room, since
the best point of a grid looks better than it is (wanted are 2 % and 0.90).

Each concept then has its own bounds on its readings: at most the probability that only 5 % of its fit contexts, read
out-of-fold, get for their own sense. A concept whose readout reads too poorly never flags by it, and if no thresholds keep the
limits, none does. Test prompts (``test``, ``glossary``, ``examples``) are not touched.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sae_runtime.detector.rule import Senses, agreed, disagreement, likeliest
from sae_runtime.evaluation.prompts import PlantedPrompt

MAX_FALSE_FLAGS = 0.02
MIN_PRECISION = 0.93
MIN_READ_ACCURACY = 0.6
NEVER = (-1.0, 1.0)  # thresholds that flag nothing, since no probability is below zero
_READ_BELOW = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5)
_INTENDED_ABOVE = (0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.97)


class Bounds(NamedTuple):
    """Thresholds of the whole rule: of the late reading, and ``early_...`` of the early one; see :mod:`sae_runtime.detector.rule`."""

    read_below: float
    intended_above: float
    early_below: float
    early_above: float
    seconded_above: float


NO_FLAGS = Bounds(*NEVER, *NEVER, NEVER[1])


@dataclass(frozen=True)
class Both:
    """A prompt's planted mention with both readings; ``late_below`` and ``early_below`` are the concept's own bounds on them.

    ``told``: what the words before the mention say. ``declared``: whether the prompt's domain is one of the concept's.
    """

    prompt: PlantedPrompt
    reading: Senses
    early: Senses
    intended: Senses
    told: Senses
    declared: bool
    late_below: float
    early_below: float


def choose_bounds(judged: Sequence[Both]) -> tuple[Bounds, dict[str, float]]:
    """Thresholds of the whole rule, and what it does with them on the calibration prompts."""
    table = Table(judged)
    best: tuple[tuple[float, ...], Bounds] | None = None
    # A source that must be certain never speaks.
    for values in product(_READ_BELOW, _INTENDED_ABOVE, _READ_BELOW, (*_INTENDED_ABOVE, 1.0), (*_INTENDED_ABOVE, 1.0)):
        bounds = Bounds(*values)
        figures = table.figures(bounds)
        if within_limits(figures, table.plain):
            strictness = sum(bounds) - 2 * (bounds.read_below + bounds.early_below)
            rank = (figures["recall"], figures["precision"], strictness)
            if best is None or rank > best[0]:
                best = (rank, bounds)
    bounds = best[1] if best else NO_FLAGS
    return bounds, table.figures(bounds)


def within_limits(figures: Mapping[str, float], plain: int) -> bool:
    """Whether what a rule does with ``plain`` plain prompts, and others, may be shipped."""
    rate = figures["false_flag_rate_plain"]
    error = math.sqrt(rate * (1 - rate) / plain) if plain else 0.0
    return rate + error <= MAX_FALSE_FLAGS and figures["precision"] >= MIN_PRECISION


class Table:
    """Prompts as arrays, so that a grid of thresholds takes seconds; flags as :func:`~sae_runtime.detector.rule.judge` does. ``plain``: how many are plain."""

    def __init__(self, judged: Sequence[Both]) -> None:
        self._late = _Against.of(judged, [(one.reading, one.intended, one.late_below) for one in judged])
        self._early = _Against.of(judged, [(one.early, one.intended, one.early_below) for one in judged])
        self._seconded = _Against.of(
            judged, [(one.early, agreed(one.intended, one.reading), one.early_below) for one in judged]
        )
        self._declared = np.array([one.declared for one in judged], dtype=bool)
        self._plain = np.array([one.prompt.kind == "plain" for one in judged], dtype=bool)
        self.plain = int(self._plain.sum())

    def flags(self, bounds: Bounds) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Which prompts are flagged, and which of these flags name the planted sense."""
        words = self._late.apart(bounds.read_below, bounds.intended_above)
        words |= self._early.apart(bounds.early_below, bounds.early_above)
        both = ~words & ~self._declared & self._seconded.apart(bounds.early_below, bounds.seconded_above)
        return words | both, (words & self._late.right) | (both & self._seconded.right)

    def figures(self, bounds: Bounds) -> dict[str, float]:
        """As :func:`flag_figures`."""
        return _figures(*self.flags(bounds), self._plain)


@dataclass(frozen=True)
class _Against:
    """One reading against one source, for all prompts: what the reading gives the sense that the source says (infinite where the
    two agree, or it was told before), what the source gives it, the concepts' own bounds, and whether the source is right."""

    given: NDArray[np.float64]
    sure: NDArray[np.float64]
    own: NDArray[np.float64]
    right: NDArray[np.bool_]

    @classmethod
    def of(cls, judged: Sequence[Both], rows: Sequence[tuple[Senses, Senses, float]]) -> _Against:
        """``rows``: readings, sources and own bounds."""
        verdicts = [
            disagreement(reading, source, 1.0, 0.0, one.told)
            for one, (reading, source, _) in zip(judged, rows, strict=True)
        ]
        meant = [likeliest(source) for _, source, _ in rows]
        return cls(
            given=np.array(
                [row[0][sense] if v else np.inf for row, sense, v in zip(rows, meant, verdicts, strict=True)]
            ),
            sure=np.array([row[1][sense] for row, sense in zip(rows, meant, strict=True)]),
            own=np.array([row[2] for row in rows]),
            right=np.array(
                [one.prompt.intended == sense for one, sense in zip(judged, meant, strict=True)], dtype=bool
            ),
        )

    def apart(self, read_below: float, intended_above: float) -> NDArray[np.bool_]:
        """Where the rule sees a disagreement."""
        return (self.given <= np.minimum(read_below, self.own)) & (self.sure >= intended_above)


@dataclass(frozen=True)
class Judged:
    """One reading of a prompt's planted mention against one source; ``trusted`` is False when its concept never flags.

    ``own_sense_low``: the concept's own bound on ``read_below``.
    """

    prompt: PlantedPrompt
    reading: dict[str, float]
    intended: dict[str, float]
    trusted: bool
    own_sense_low: float = 1.0

    def flagged(self, read_below: float, intended_above: float) -> str | None:
        """The sense that the rule says is meant, or None."""
        if not self.trusted:
            return None
        verdict = disagreement(self.reading, self.intended, min(read_below, self.own_sense_low), intended_above)
        return verdict.intended if verdict else None


def choose_thresholds(judged: list[Judged]) -> tuple[float, float, dict[str, float]]:
    """Thresholds (``read_below``, ``intended_above``) of one reading, and what they do on the calibration prompts."""
    best: tuple[tuple[float, ...], float, float, dict[str, float]] | None = None
    plain = sum(item.prompt.kind == "plain" for item in judged)
    for read_below, intended_above in product(_READ_BELOW, _INTENDED_ABOVE):
        figures = flag_figures(judged, read_below, intended_above)
        allowed = within_limits(figures, plain)
        rank = (
            float(allowed),
            figures["recall"] if allowed else 0.0,
            figures["precision"],
            -read_below,
            intended_above,
        )
        if best is None or rank > best[0]:
            best = (rank, read_below, intended_above, figures)
    if best is None or not best[0][0]:
        return *NEVER, flag_figures(judged, *NEVER)
    return best[1], best[2], best[3]


def flag_figures(judged: list[Judged], read_below: float, intended_above: float) -> dict[str, float]:
    """Precision and recall of flags on planted prompts; one is right when it names the planted sense."""
    flags = [(item.prompt, item.flagged(read_below, intended_above)) for item in judged]
    return _figures(
        np.array([meant is not None for _, meant in flags], dtype=bool),
        np.array([meant == prompt.intended for prompt, meant in flags], dtype=bool),
        np.array([prompt.kind == "plain" for prompt, _ in flags], dtype=bool),
    )


def _figures(flagged: NDArray[np.bool_], right: NDArray[np.bool_], plain: NDArray[np.bool_]) -> dict[str, float]:
    """Of prompts of which some are ``flagged``, some of these with the ``right`` sense, and some are ``plain``.

    Precision and recall are those on planted prompts, so that they do not depend on how many plain ones there are.
    """
    raised, planted, found = int((flagged & ~plain).sum()), int((~plain).sum()), int((right & ~plain).sum())
    return {
        "precision": found / raised if raised else 0.0,
        "recall": found / planted if planted else 0.0,
        "flags": int(flagged.sum()),
        "false_flag_rate_plain": int(flagged[plain].sum()) / int(plain.sum()) if plain.any() else 0.0,
    }
