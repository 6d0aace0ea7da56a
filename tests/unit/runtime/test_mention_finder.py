"""Finding concept forms in text: word borders, case, overlaps, and offsets that survive Unicode case folding."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sae_runtime.catalog.view import Concept
from sae_runtime.detector.mentions import Mention, MentionFinder, fold

Find = Callable[[str, str], list[str]]
# Letters whose case mapping changes the length of the text or leaves ASCII: İ, ẞ, ﬁ, the Kelvin sign, Greek sigma.
_ODD_LETTERS = "İıẞßﬁΣσςKŉǰ𝔘🙂"
texts = st.lists(st.sampled_from([*_ODD_LETTERS, " ", "bank", "a.", "_"]) | st.text(max_size=3), max_size=12).map(
    "".join
)
small_texts = st.text("aAbB c,", max_size=24)
small_forms = st.lists(st.text("abc ", min_size=1, max_size=4).map(str.strip).filter(bool), min_size=1, max_size=5)


@pytest.fixture(scope="module")
def finder_for(make_concept: Callable[..., Concept]) -> Callable[[list[str]], MentionFinder]:
    """Finder of one concept per form."""

    def make(forms: list[str]) -> MentionFinder:
        return MentionFinder([make_concept(f"c{number}", forms=(form,)) for number, form in enumerate(forms)])

    return make


@pytest.fixture(scope="module")
def find(finder_for: Callable[[list[str]], MentionFinder]) -> Find:
    """The words found for comma-separated forms."""

    def run(forms: str, text: str) -> list[str]:
        return [text[m.start : m.end] for m in finder_for(forms.split(",")).find(text)]

    return run


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("The bank closed.", ["bank"]),
        ("bank", ["bank"]),
        ("(bank) «bank» bank's bank-side bank,bank", ["bank"] * 6),
        ("Banks embankment bankrupt 3bank bank4", []),
        ("überbank bankä 銀bank", []),
        ("BANK Bank bAnK", ["BANK", "Bank", "bAnK"]),
        ("🙂bank🙂", ["bank"]),
        ("", []),
    ],
)
def test_whole_words_in_any_case(find: Find, text: str, found: list[str]) -> None:
    assert find("bank", text) == found


def test_multi_word_forms_need_their_own_spacing(find: Find) -> None:
    text = "A Piece of Cake; pieces of cake; a piece of cakes; piece  of cake"
    assert find("piece of cake", text) == ["Piece of Cake"]


def test_the_longest_of_overlapping_forms_wins(find: Find) -> None:
    assert find("less,less than,more or less", "less than more or less than one") == ["less than", "more or less"]


def test_the_first_of_equally_long_overlapping_forms_wins(find: Find) -> None:
    assert find("ab c,c de", "ab c de") == ["ab c"]


def test_a_finder_without_concepts_finds_nothing() -> None:
    assert MentionFinder([]).find("bank") == []


def test_every_form_of_a_concept_leads_to_it(make_concept: Callable[..., Concept]) -> None:
    bank, bat = make_concept("bank", forms=("bank", "banks")), make_concept("bat", forms=("bat", "bats"))
    mentions = MentionFinder([bank, bat]).find("Bats on banks, a bat at a bank")
    assert [m.concept.slug for m in mentions] == ["bat", "bank", "bat", "bank"]
    assert all(m.concept in (bank, bat) for m in mentions)


@given(small_forms, small_texts)
def test_mentions_are_forms_between_word_borders_in_order(
    finder_for: Callable[[list[str]], MentionFinder], forms: list[str], text: str
) -> None:
    mentions = finder_for(forms).find(text)
    for mention in mentions:
        assert text[mention.start : mention.end].lower() in mention.concept.forms
        assert not text[: mention.start][-1:].isalnum() or not text[mention.start].isalnum()
        assert not text[mention.end :][:1].isalnum() or not text[mention.end - 1].isalnum()
    assert all(left.end <= right.start for left, right in pairwise(mentions))


@given(small_forms, small_texts)
def test_no_form_is_missed_unless_one_at_least_as_long_overlaps_it(
    finder_for: Callable[[list[str]], MentionFinder], forms: list[str], text: str
) -> None:
    mentions = finder_for(forms).find(text)
    padded = f" {text} "  # so that borders need no special cases
    for form in forms:
        for start in range(len(text) - len(form) + 1):
            end = start + len(form)
            whole = not padded[start].isalnum() and not padded[end + 1].isalnum()
            if whole and text[start:end].lower() == form:
                assert any(m.start < end and start < m.end and m.end - m.start >= len(form) for m in mentions)


@given(texts, texts, st.sampled_from(["bank", "BANK", "Bank", "ban\u212a"]))
def test_a_planted_form_is_found_at_its_place_whatever_surrounds_it(
    finder_for: Callable[[list[str]], MentionFinder], before: str, after: str, form: str
) -> None:
    text = f"{before} {form} {after}"
    mentions = finder_for(["bank"]).find(text)
    assert (len(before) + 1, len(before) + 5) in [(m.start, m.end) for m in mentions]


@given(texts)
def test_folding_keeps_every_character_in_its_place(text: str) -> None:
    folded = fold(text)
    assert len(folded) == len(text)
    assert all(new in (old.casefold(), old, "ς") for old, new in zip(text, folded, strict=True))


@pytest.mark.parametrize("rest", ["", " İ"])
def test_a_form_is_found_no_matter_which_letters_stand_elsewhere(find: Find, rest: str) -> None:
    """İ lowers to two characters, which must not change how the other letters fold."""
    assert find("οδος", "ΟΔΟΣ" + rest) == ["ΟΔΟΣ"]


@given(small_forms, small_texts)
def test_finding_is_deterministic(
    finder_for: Callable[[list[str]], MentionFinder], forms: list[str], text: str
) -> None:
    def places(mentions: list[Mention]) -> list[tuple[int, int, str]]:
        return [(m.start, m.end, m.concept.slug) for m in mentions]

    finder = finder_for(forms)
    assert places(finder.find(text)) == places(finder.find(text)) == places(finder_for(forms).find(text))
