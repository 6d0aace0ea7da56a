"""Mentions are whole words in order that fold to a form; a naive search over the same text finds no other."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import strategies as st

from sae_runtime.catalog.view import Concept, Sense
from sae_runtime.detector.mentions import MentionFinder, fold

from ..texts import texts

Case = tuple[list[str], list[str]]

_small = st.text("abA ßİ.'_", min_size=1, max_size=4)
CASES: st.SearchStrategy[Case] = st.tuples(
    st.lists(_small | texts(2).filter(bool), max_size=5), st.lists(_small | texts(3) | st.just("bank"), max_size=8)
)

_SENSES = tuple(
    Sense(slug=slug, gloss=slug, note="{mention}", domains=frozenset(), bias=0.0, weights={}, cues={})
    for slug in ("first", "second")
)


def check(case: Case) -> None:
    """See the module."""
    forms, pieces = case
    text = "".join(pieces)
    concepts = [
        Concept(f"c{number}", "test", (form,), "mention", 1.0, None, 0.2, 0.8, _SENSES)
        for number, form in enumerate(forms)
    ]
    folded = fold(text)
    assert len(folded) == len(text), "folding moves characters"
    found = MentionFinder(concepts).find(text)
    places = [(mention.start, mention.end) for mention in found]
    wanted = _naive({fold(form) for form in forms}, text, folded)
    assert places == wanted, f"found {places}, a naive search {wanted}"
    for mention, (start, end) in zip(found, places, strict=True):
        assert fold(mention.concept.forms[0]) == folded[start:end], "another concept's form"
    assert all(left[1] <= right[0] for left, right in pairwise(places)), "mentions overlap"


def _naive(forms: set[str], text: str, folded: str) -> list[tuple[int, int]]:
    """Whole-word occurrences; of overlapping ones the longest, then the first."""
    padded = f" {text} "

    def joins(border: int) -> bool:  # letters or digits on both sides of the border before text[border]
        return padded[border].isalnum() and padded[border + 1].isalnum()

    every = [
        (start, start + len(form))
        for form in forms
        for start in range(len(text) - len(form) + 1)
        if folded.startswith(form, start) and not joins(start) and not joins(start + len(form))
    ]
    taken: list[tuple[int, int]] = []
    for start, end in sorted(every, key=lambda place: (place[0] - place[1], place[0])):
        if all(end <= low or high <= start for low, high in taken):
            taken.append((start, end))
    return sorted(taken)
