"""Finding mentions of concepts: one Aho-Corasick automaton over all word forms, linear in the prompt."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import ahocorasick

from sae_runtime.catalog.view import Concept


@dataclass(frozen=True)
class Mention:
    """``text[start:end]`` is a form of ``concept``."""

    concept: Concept
    start: int
    end: int


class MentionFinder:
    """Finds whole-word, case-insensitive forms; of overlapping ones the longest, then the first, wins."""

    def __init__(self, concepts: Iterable[Concept]) -> None:
        self._automaton = ahocorasick.Automaton()
        self._empty = True
        for concept in concepts:
            for form in concept.forms:
                folded = fold(form)
                self._automaton.add_word(folded, (len(folded), concept))
                self._empty = False
        if not self._empty:
            self._automaton.make_automaton()

    def find(self, text: str) -> list[Mention]:
        """All mentions in ``text`` in order; they do not overlap."""
        if self._empty:
            return []
        found = []
        for last, (length, concept) in self._automaton.iter(fold(text)):
            start, end = last - length + 1, last + 1
            if not (_inside_word(text, start) or _inside_word(text, end)):
                found.append(Mention(concept, start, end))
        found.sort(key=lambda mention: (mention.start - mention.end, mention.start))
        taken: list[Mention] = []
        covered = bytearray(len(text))  # looked at by character: linear in the prompt, however many mentions it has
        for mention in found:
            if covered.find(1, mention.start, mention.end) < 0:
                covered[mention.start : mention.end] = b"\x01" * (mention.end - mention.start)
                taken.append(mention)
        return sorted(taken, key=lambda mention: mention.start)


def fold(text: str) -> str:
    """Case-folded text, letter by letter, so that every character keeps its place.

    A few letters fold to two characters; they stay as they are. Rules that look at neighbours (the Greek final sigma)
    do not apply, or the same word would fold differently in another text.
    """
    return "".join(low if len(low := char.casefold()) == 1 else char for char in text)


def _inside_word(text: str, border: int) -> bool:
    """Whether the border before ``text[border]`` has a letter or digit on both sides."""
    return 0 < border < len(text) and text[border - 1].isalnum() and text[border].isalnum()
