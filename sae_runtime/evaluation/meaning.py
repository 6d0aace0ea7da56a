"""Asking the served model what a word means in a message, by how likely each gloss is as its answer.

The answer begins with "Here "bank" means:", and each sense's gloss is scored after it by its log-likelihood, minus that of
the same gloss when the message is "N/A" (domain-conditional PMI, Holtzman et al. 2021). Letters are of no use
here: on 24 plain prompts of the ``dev`` set the default model found the right gloss in 83 % by likelihood, and in 42 % by letter.
"""

from __future__ import annotations

from collections.abc import Sequence

from sae_runtime.evaluation.answers import Question


def meaning_question(message: str, mention: str, glosses: Sequence[str]) -> Question:
    """The question what ``mention`` means in ``message``, which may end with a note."""
    return Question.of(
        f'{message}\n\nIn this message, what does "{mention}" mean?',
        opening=f'Here "{mention}" means:',
        endings=tuple(glosses),
    )


def meaning_blank(mention: str, glosses: Sequence[str]) -> Question:
    """The same question about nothing."""
    return meaning_question("N/A", mention, glosses)
