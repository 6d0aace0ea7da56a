"""A deployer's terms: how they are written, how they are found in text, and the sentences that are made for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_glossaries import CHURN, LEAD, term
from yaml_trouble import ODD_YAML

from sae_runtime.detector.mentions import MentionFinder
from sae_runtime.errors import InputError
from sae_runtime.glossary import Glossary, Term
from sae_runtime.glossary.compile import fit_term, sentences
from sae_runtime.glossary.terms import MAX_EXAMPLES, MAX_TERMS

# How terms are written.


def test_terms_are_given_by_name() -> None:
    glossary = Glossary.from_dict({"churn": CHURN, "lead": LEAD})
    assert [found.term for found in glossary.terms] == ["churn", "lead"]
    assert glossary.terms[0].otherwise == ["stirring milk"]  # one is a list of one
    assert glossary.terms[1].otherwise == LEAD["otherwise"]
    assert glossary.terms[0].slug == "glossary:churn"


def test_what_is_dumped_can_be_given_again() -> None:
    glossary = Glossary.from_dict({"churn": CHURN, "lead": LEAD})
    for again in (Glossary.from_dict(glossary.model_dump()), Glossary.model_validate_json(glossary.model_dump_json())):
        assert again == glossary
        assert again.key == glossary.key


def test_a_term_may_be_called_terms() -> None:
    assert Glossary.from_dict({"terms": CHURN}).terms[0].term == "terms"


def test_a_file_has_the_same_shape(tmp_path: Path) -> None:
    path = tmp_path / "glossary.yaml"
    path.write_text("churn:\n  meaning: customers who leave\n  otherwise: stirring milk\n", "utf-8")
    assert Glossary.from_yaml(path) == Glossary.from_yaml(str(path)) == Glossary.from_dict({"churn": CHURN})


@pytest.mark.parametrize(
    ("terms", "words"),
    [
        ({"churn": {"meaning": "customers who leave"}}, ["churn", "otherwise", "counterexamples"]),
        ({"churn": "customers who leave"}, ["churn", "otherwise"]),
        ({"churn": {"otherwise": "x y"}}, ["'churn'", "meaning"]),
        ({"lead": LEAD, "churn": CHURN | {"color": 1}}, ["'churn'", "color"]),
        ({"churn": CHURN | {"meaning": 3}}, ["'churn'", "meaning"]),
        ({"churn": None}, ["'churn'", "meaning"]),
        ({"churn": CHURN | {"examples": ["Nobody leaves."]}}, ["churn", "Nobody leaves."]),
        ({"churn": CHURN | {"counterexamples": ["A churning sea."]}}, ["churn", "A churning sea."]),
        ({"churn": CHURN, "rate": CHURN | {"forms": ["Churn"]}}, ["churn", "rate", "both"]),
        ({"churn": CHURN, "churns": CHURN}, ["'churns'", "'churn'", "both"]),
        ({"C++": CHURN, "C#": CHURN}, ["C++", "C#"]),
        ({"terms": [{"term": "churn", **CHURN}, {"term": "churn", **CHURN}]}, ["churn", "twice"]),
        ({"terms": [{"term": "churn"}]}, ["'churn'", "meaning"]),
        ({"terms": ["churn"]}, ["0"]),
        ({"x": CHURN}, ["'x'", "at least 2"]),
        ({}, ["at least 1"]),
    ],
    ids=lambda value: str(value)[:40],
)
def test_an_error_names_the_term_and_where_to_read_on(terms: Any, words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        Glossary.from_dict(terms)
    assert [word for word in words if word not in caught.value.message] == []
    assert "docs/how-to/glossary.md" in caught.value.remedy


@pytest.mark.parametrize(
    "content", [None, "churn: [", "- churn", "", "\ud83c"], ids=["none", "yaml", "list", "empty", "bytes"]
)
def test_a_file_that_is_no_glossary_is_named(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "glossary.yaml"
    if content is not None:
        path.write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(InputError, match=r"glossary\.yaml") as caught:
        Glossary.from_yaml(path)
    assert caught.value.remedy


@pytest.mark.parametrize("value", ODD_YAML)
def test_values_on_which_the_yaml_library_stumbles_are_refused(tmp_path: Path, value: str) -> None:
    """Found by fuzzing."""
    path = tmp_path / "glossary.yaml"
    path.write_text(f"churn: {value}\n", "utf-8")
    with pytest.raises(InputError, match="glossary"):
        Glossary.from_yaml(path)


@pytest.mark.parametrize("name", ["İzin", "aİb", "STRAẞE", "Ǆa", "ϴa"])
def test_a_term_is_found_whatever_its_letters_become_in_lower_case(name: str) -> None:
    """Found by fuzzing: İ is two characters in lower case, no sentence held the term, and compiling it failed."""
    (term,) = Glossary.from_dict({name: CHURN}).terms
    assert len(sentences(term)) == 6
    concept = fit_term(term, sentences(term), np.eye(6))
    assert MentionFinder([concept]).find(f"about {term.term}.")


@pytest.mark.parametrize(
    "fields",
    [{"examples": ["the churn"] * (MAX_EXAMPLES + 1)}, {"counterexamples": ["the churn"] * (MAX_EXAMPLES + 1)},
     {"otherwise": ["x y"] * 9}, {"forms": ["churned"] * 49}, {"meaning": "m" * 201}, {"note": "n" * 241},
     {"examples": ["churn " + "x" * 400]}, {"forms": ["c"]}],
    ids=lambda fields: next(iter(fields)),
)  # fmt: skip
def test_there_are_limits(fields: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="'churn'"):
        Glossary.from_dict({"churn": CHURN | fields})


def test_there_is_a_limit_on_terms() -> None:
    names = [f"term number {number}" for number in range(MAX_TERMS)]
    assert len(Glossary.from_dict(dict.fromkeys(names, CHURN)).terms) == MAX_TERMS
    with pytest.raises(InputError, match=f"at most {MAX_TERMS}"):
        Glossary.from_dict(dict.fromkeys([*names, "another"], CHURN))


def test_the_key_does_not_depend_on_how_it_is_written() -> None:
    key = Glossary.from_dict({"churn": CHURN, "lead": LEAD}).key
    assert key == Glossary.from_dict({"churn": dict(reversed(CHURN.items())), "lead": LEAD}).key
    assert key == Glossary.from_dict({"churn": CHURN | {"otherwise": ["stirring milk"], "note": ""}, "lead": LEAD}).key
    assert key == Glossary.from_dict({"lead": LEAD, "churn": CHURN}).key  # the order of terms means nothing
    assert len(key) == 16


@pytest.mark.parametrize(
    "change",
    [{"meaning": "clients who leave"}, {"otherwise": ["stirring milk", "turmoil"]}, {"note": "A note."},
     {"forms": ["churned"]}, {"examples": ["the churn"]}, {"counterexamples": ["the churn"]}],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_any_change_gives_another_key(change: dict[str, Any]) -> None:
    assert Glossary.from_dict({"churn": CHURN | change}).key != Glossary.from_dict({"churn": CHURN}).key


def test_the_order_of_what_else_a_term_could_mean_is_part_of_the_key() -> None:
    # It stands in the concept's gloss in that order.
    turned = LEAD | {"otherwise": LEAD["otherwise"][::-1]}
    assert Glossary.from_dict({"lead": turned}).key != Glossary.from_dict({"lead": LEAD}).key


def test_half_a_character_is_refused_with_the_term() -> None:
    with pytest.raises(InputError, match=r"'churn'\.meaning"):
        Glossary.from_dict({"churn": CHURN | {"meaning": "leave \ud83c"}})


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Our churn is high.", "churn"),
        ("Churn! CHURN!", "CHURN"),  # the last one
        ("two churns", "churns"),
        ("churning", None),
        ("a dischurn", None),
        ("churn_rate", None),
        ("churn's cause", "churn"),
        ("pre-churn", "churn"),
        ("attrition or attritions", "attrition"),
        ("logo churn rate", "logo churn rate"),  # the longest form
        ("", None),
    ],
)
def test_a_mention_is_the_last_whole_word_in_any_case(text: str, found: str | None) -> None:
    place = term(forms=["attrition", "logo churn rate"]).mention(text)
    assert (place and text[slice(*place)]) == found


def test_a_plural_is_added_where_there_is_none() -> None:
    assert term("seat").all_forms == ("seat", "seats")
    assert term("boss").all_forms == ("boss",)
    assert term("Seat", forms=["SEAT", "Seats", "licence"]).all_forms == ("seat", "seats", "licence")


def test_a_term_of_symbols_is_found() -> None:
    found = term("C++").mention("I like C++, and C.")
    assert found == (7, 10)


def test_the_note_is_made_from_the_meaning_unless_it_is_given() -> None:
    assert term().note_text == '"{mention}" means customers who leave here.'
    assert term(note="Mind {mention}.").note_text == "Mind {mention}."


@given(st.text(min_size=2, max_size=20), st.text(max_size=40))
def test_a_mention_is_always_one_of_the_forms(name: str, text: str) -> None:
    made = term(name)
    place = made.mention(f"{text} {name} {text}")
    if place is not None:
        words = f"{text} {name} {text}"[slice(*place)]
        assert any(len(words) == len(form) for form in made.all_forms)


# The sentences.


def test_sentences_are_the_given_ones_and_some_made_from_the_meanings() -> None:
    made = sentences(term("lead", **LEAD, examples=["Call the lead."], counterexamples=["Melt lead.", "Lead paint."]))
    assert [(text.text, text.meant, text.given) for text in made[:3]] == [
        ("Call the lead.", True, True), ("Melt lead.", False, True), ("Lead paint.", False, True),
    ]  # fmt: skip
    assert [(text.meant, text.given) for text in made[3:]] == [(True, False)] * 3 + [(False, False)] * 6
    assert all(text.text[text.start : text.end].lower() == "lead" for text in made)
    assert all(
        meaning in " ".join(text.text.lower() for text in made) for meaning in ("a likely customer", "grey metal")
    )


@given(st.text(min_size=2, max_size=60), st.text(min_size=2, max_size=60))
def test_both_sides_always_have_sentences(name: str, meaning: str) -> None:
    made = sentences(Term(term=name, meaning=meaning, otherwise=["something else"]))
    assert {text.meant for text in made} == {True, False}
