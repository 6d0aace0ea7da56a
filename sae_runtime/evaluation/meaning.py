"""Asking the served model what a word means in a message, by how likely each gloss is as its answer.

The answer begins with "Here "bank" means:", and each sense's gloss is scored after it by its log-likelihood, minus that of
the same gloss when the message is "N/A" (domain-conditional PMI, Holtzman et al. 2021). Letters are of no use
here: on 24 plain prompts of the ``dev`` set the default model found the right gloss in 83 % by likelihood, and in 42 % by letter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sae_runtime.detector.notes import joined_notes
from sae_runtime.evaluation.answers import Question
from sae_runtime.evaluation.scoring import Scored, score_choice


@dataclass(frozen=True)
class Meaning:
    """What ``mention`` can mean: ``glosses``, of which number ``right`` is the planted one."""

    mention: str
    glosses: tuple[str, ...]
    right: int

    def question(self, message: str, note: str = "") -> Question:
        """What it means in ``message``, with ``note`` ("" for none) where the product would put it."""
        said = message + (joined_notes([note]) if note else "")
        return Question.of(
            f'{said}\n\nIn this message, what does "{self.mention}" mean?',
            opening=f'Here "{self.mention}" means:',
            endings=self.glosses,
        )

    @property
    def blank(self) -> Question:
        """The same question about nothing."""
        return self.question("N/A")

    def score(self, answer: dict[str, Any], blank: dict[str, Any]) -> Scored:
        """Judge the ``answer`` to a question, given that to the blank one."""
        return score_choice(answer["scores"], self.right, blank["scores"])
