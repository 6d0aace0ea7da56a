"""Calibrating the misread rule on written prompts with planted senses (``calibration`` and ``dev`` of ``evaluation/planted_sets``).

One pair of thresholds bounds all concepts: the one with the highest recall among those that keep false flags on plain
prompts within :data:`MAX_FALSE_FLAGS` and precision at least :data:`MIN_PRECISION`, ties broken by precision and then by
stricter thresholds. Both limits are stricter than what is wanted (2 %, 0.90), since the best pair of a grid looks better
than it is. Each concept then has its own ``read_below``: at most the probability that only 5 % of its fit contexts, read
out-of-fold, get for their own sense. A concept whose signature reads too poorly never flags, and if no pair keeps the
limits, none does. Test prompts (``test``, ``glossary``, ``examples``) are not touched.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

from sae_runtime.detector.detector import disagreement
from sae_runtime.evaluation.prompts import PlantedPrompt

MAX_FALSE_FLAGS = 0.015
MIN_PRECISION = 0.93
MIN_READ_ACCURACY = 0.6
NEVER = (-1.0, 1.0)  # thresholds that flag nothing, since no probability is below zero
_READ_BELOW = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5)
_INTENDED_ABOVE = (0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.97)


@dataclass(frozen=True)
class Judged:
    """A prompt's planted mention with both probability tables; ``trusted`` is False when its concept never flags.

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
        return verdict[1] if verdict else None


def choose_thresholds(judged: list[Judged]) -> tuple[float, float, dict[str, float]]:
    """Thresholds (``read_below``, ``intended_above``) and what they do on the calibration prompts."""
    best: tuple[tuple[float, ...], float, float, dict[str, float]] | None = None
    for read_below, intended_above in product(_READ_BELOW, _INTENDED_ABOVE):
        figures = flag_figures(judged, read_below, intended_above)
        allowed = figures["false_flag_rate_plain"] <= MAX_FALSE_FLAGS and figures["precision"] >= MIN_PRECISION
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
    """Precision and recall of flags against the planted senses; a flag counts as right when it names the planted one."""
    flags = [(item.prompt, item.flagged(read_below, intended_above)) for item in judged]
    planted = [(prompt, meant) for prompt, meant in flags if prompt.kind != "plain"]
    plain = [meant for prompt, meant in flags if prompt.kind == "plain"]
    right = sum(meant == prompt.intended for prompt, meant in planted)
    raised = sum(meant is not None for _, meant in flags)
    return {
        "precision": right / raised if raised else 0.0,
        "recall": right / len(planted) if planted else 0.0,
        "flags": raised,
        "false_flag_rate_plain": sum(meant is not None for meant in plain) / len(plain) if plain else 0.0,
    }
