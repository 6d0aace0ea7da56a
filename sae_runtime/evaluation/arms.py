"""The arms of an evaluation: which note each item gets, and by whose judgement.

======================  ==================================================================================
``plain``               no note
``flagged``             the SAE readout's note where it is sure enough (threshold chosen on the dev part)
``careful``             as ``flagged``, at a threshold that keeps harm on the dev part within 2 %
``always``              the SAE readout's note on every item
``placebo``             where ``flagged`` notes: a neutral note of as many words
``random-sense``        where ``flagged`` notes: the note of a label drawn at random
``dense-probe``         as ``flagged``, by a logistic probe on the residual stream
``diffmean``            as ``flagged``, by the class means of the residual stream
``self-rewrite``        the model's own restatement of the prompt in place of a note, on every item
``oracle``              the right note on every item: what notes could do at best
======================  ==================================================================================
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice

import numpy as np
from numpy.typing import NDArray

from sae_runtime.errors import InputError
from sae_runtime.evaluation.items import Item, Task

TRIGGERS = {"flagged": "sae", "careful": "sae", "dense-probe": "dense", "diffmean": "diffmean"}
ARMS = (
    "plain",
    "flagged",
    "careful",
    "always",
    "placebo",
    "random-sense",
    "dense-probe",
    "diffmean",
    "self-rewrite",
    "oracle",
)
MAX_HARM = 0.02  # of the dev items that ``careful`` may turn from right to wrong
THRESHOLDS = (0.0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98, 1.01)  # of the last, nothing is flagged
_NEUTRAL = (
    "This is a message in the English language, which was written down in ordinary words and which stands above in "
    "its full length, from its first letter to its last."
)


@dataclass(frozen=True)
class Notes:
    """The notes of one arm: per item the label that its note says (None: no note, or one of no label) and its text."""

    labels: list[str | None]
    texts: list[str]


def check_arms(arms: Sequence[str]) -> list[str]:
    """``arms`` in the order of :data:`ARMS`, with ``plain``, which all others are compared with.

    Raises:
        InputError: one of them does not exist.
    """
    if unknown := [arm for arm in arms if arm not in ARMS]:
        raise InputError(f"There is no arm '{unknown[0]}'.", f"Choose from {', '.join(ARMS)}.")
    return [arm for arm in ARMS if arm == "plain" or arm in arms]


def said(items: Sequence[Item], probabilities: NDArray[np.float64], threshold: float) -> list[str | None]:
    """The label that a readout says of each item, None where its probability is below ``threshold``."""
    best = probabilities.argmax(1)
    return [
        item.labels[label] if row[label] >= threshold else None
        for item, row, label in zip(items, probabilities, best.tolist(), strict=True)
    ]


def noted(task: Task, wording: str, items: Sequence[Item], labels: Sequence[str | None]) -> Notes:
    """Notes that say ``labels``."""
    texts = [task.note(wording, label, item) if label else "" for item, label in zip(items, labels, strict=True)]
    return Notes(list(labels), texts)


def drawn_at_random(items: Sequence[Item], where: Sequence[str | None]) -> list[str | None]:
    """A seeded label of each item that ``where`` has one for."""
    return [random_sense(item.id, item.labels) if label else None for item, label in zip(items, where, strict=True)]


def random_sense(item: str, senses: Sequence[str]) -> str:
    """One of ``senses``, drawn with the item's own seed."""
    return random.Random(f"sense {item}").choice(senses)


def placebo(real: Notes) -> Notes:
    """Neutral notes of as many words as the ``real`` ones."""
    words = cycle(_NEUTRAL.split())
    texts = [" ".join(islice(words, len(text.split()))) if text else "" for text in real.texts]
    return Notes([None] * len(texts), texts)
