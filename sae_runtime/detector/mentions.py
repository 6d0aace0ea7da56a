"""Finding mentions of concepts: one Aho-Corasick automaton over all word forms, linear in the prompt."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import ahocorasick

from sae_runtime.catalog.lookup import ConceptLookup, ListedConcepts, OverlaidConcepts, concept_lookup
from sae_runtime.catalog.view import Concept


@dataclass(frozen=True)
class Mention:
    """``text[start:end]`` is a form of ``concept``."""

    concept: Concept
    start: int
    end: int


@dataclass(frozen=True)
class Hit:
    """``text[start:end]`` is a form of the concept ``key`` of :attr:`MentionFinder.concepts`."""

    key: int
    start: int
    end: int


class MentionFinder:
    """Finds whole-word, case-insensitive forms; of overlapping ones the longest, then the first, wins.

    Attributes:
        concepts: what it finds.
    """

    def __init__(self, concepts: Iterable[Concept]) -> None:
        self.concepts: ConceptLookup = concept_lookup(concepts)
        # Each automaton with the keys that it finds in vain, since other concepts have taken their forms.
        self._layers: list[tuple[ahocorasick.Automaton, frozenset[int]]] = [(_automaton(self.concepts), frozenset())]

    def beside(self, concepts: Sequence[Concept]) -> MentionFinder:
        """A finder that also knows ``concepts``, instead of those that share a form with them.

        The automaton of what is known already is shared, however large it is.
        """
        own = ListedConcepts(concepts, self.concepts.free_key)
        folded = [fold(form) for concept in concepts for form in concept.forms]
        found = [automaton.get(form, None) for automaton, _ in self._layers for form in folded]
        taken = frozenset(key for value in found if value for key in value[1:])
        finder = MentionFinder(())
        finder.concepts = OverlaidConcepts(self.concepts, taken, own)
        finder._layers = [(automaton, hidden | taken) for automaton, hidden in self._layers]
        finder._layers.append((_automaton(own), frozenset()))
        return finder

    def find(self, text: str) -> list[Mention]:
        """All mentions in ``text`` in order; they do not overlap."""
        hits = self.hits(text)
        concepts = self.concepts.many({hit.key for hit in hits})
        return [Mention(concepts[hit.key], hit.start, hit.end) for hit in hits]

    def hits(self, text: str) -> list[Hit]:
        """Where :meth:`find` finds what, without looking up the concepts."""
        folded = fold(text)
        found = []
        for automaton, hidden in self._layers:
            # An automaton without words has another kind, and no iter().
            for last, (length, *keys) in automaton.iter(folded) if automaton.kind == ahocorasick.AHOCORASICK else ():
                start, end = last - length + 1, last + 1
                if _inside_word(text, start) or _inside_word(text, end):
                    continue
                if (key := next((key for key in keys if key not in hidden), None)) is not None:
                    found.append(Hit(key, start, end))
        found.sort(key=lambda hit: (hit.start - hit.end, hit.start))
        taken: list[Hit] = []
        covered = bytearray(len(text))  # looked at by character: linear in the prompt, however many mentions it has
        for hit in found:
            if covered.find(1, hit.start, hit.end) < 0:
                covered[hit.start : hit.end] = b"\x01" * (hit.end - hit.start)
                taken.append(hit)
        return sorted(taken, key=lambda hit: hit.start)


def _automaton(concepts: ConceptLookup) -> ahocorasick.Automaton:
    """Over all forms. The value of a form is its length, then the keys of the concepts that have it, the last one first."""
    automaton = ahocorasick.Automaton()
    for key, forms in concepts.forms():
        for folded in dict.fromkeys(map(fold, forms)):
            others = automaton.get(folded, (0,))[1:]
            automaton.add_word(folded, (len(folded), key, *others))
    automaton.make_automaton()
    return automaton


def fold(text: str) -> str:
    """Case-folded text, letter by letter, so that every character keeps its place.

    A few letters fold to two characters; they stay as they are. Rules that look at neighbours (the Greek final sigma)
    do not apply, or the same word would fold differently in another text.
    """
    if text.isascii():
        return text.lower()
    return "".join(low if len(low := char.casefold()) == 1 else char for char in text)


def _inside_word(text: str, border: int) -> bool:
    """Whether the border before ``text[border]`` has a letter or digit on both sides."""
    return 0 < border < len(text) and text[border - 1].isalnum() and text[border].isalnum()
