"""How well a description predicts a latent on text that was not used to write it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from sae_runtime.build.features.predicates import Mask
from sae_runtime.build.features.tokens import TokenTable

_NEAR = 3  # tokens around a firing that count as hard negatives


@dataclass(frozen=True)
class Scores:
    """A description's scores on one split.

    Attributes:
        samples: tokens on which the latent fires.
        predicted: tokens on which the description says so.
        precision: share of ``predicted`` that fire, with its 95 % Wilson interval ``precision_low, precision_high``.
        recall: share of ``samples`` that are predicted.
        balanced_accuracy: mean of recall and of specificity on hard negatives: tokens on which the latent does not fire
            though it fires elsewhere on the same word, or does so at most three tokens away.
    """

    samples: int = 0
    predicted: int = 0
    precision: float = 0.0
    precision_low: float = 0.0
    precision_high: float = 1.0
    recall: float = 0.0
    balanced_accuracy: float = 0.5

    @classmethod
    def of(cls, says: Mask, fired: NDArray[Any], table: TokenTable) -> Scores:
        """Score the prediction ``says`` ``[rows]`` of a latent that fires on the rows ``fired``."""
        fires = np.zeros(len(table), dtype=bool)
        fires[fired] = True
        hits = int((says & fires).sum())
        predicted = int(says.sum())
        recall = hits / max(1, len(fired))
        hard = hard_negatives(fires, fired, table)
        specificity = 1 - float(says[hard].mean()) if hard.any() else 1.0
        low, high = wilson(hits, predicted)
        return cls(
            samples=len(fired),
            predicted=predicted,
            precision=hits / max(1, predicted),
            precision_low=low,
            precision_high=high,
            recall=recall,
            balanced_accuracy=(recall + specificity) / 2,
        )


def hard_negatives(fires: Mask, fired: NDArray[Any], table: TokenTable) -> Mask:
    """Tokens that look like firings and are none, ``[rows]``."""
    same_word = np.zeros(len(table.words), dtype=bool)
    same_word[table.word[fired]] = True
    hard = same_word[table.word]
    for step in range(1, _NEAR + 1):
        for moved in (fired - step, fired + step):
            inside = (moved >= 0) & (moved < len(table))
            near = moved[inside]
            hard[near[table.sequence[near] == table.sequence[fired[inside]]]] = True
    return hard & ~fires


def wilson(hits: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's interval of a share (Wilson 1927); (0, 1) when nothing was observed."""
    if total == 0:
        return 0.0, 1.0
    z = float(norm.ppf(0.5 + confidence / 2))
    share, spread = hits / total, z * z / total
    centre = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * np.sqrt(share * (1 - share) / total + spread / (4 * total))
    return max(0.0, centre - half), min(1.0, centre + half)
