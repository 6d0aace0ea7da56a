"""The intended sense from surrounding words and declared domain, and how cue weights are fitted to packs."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sae_runtime.build.cues import fit_cues
from sae_runtime.catalog.packs import ConceptPack, SensePack, load_packs
from sae_runtime.catalog.view import Concept, Sense
from sae_runtime.detector.context import (
    DOMAIN_LOGIT,
    context_stems,
    intended_senses,
    softmax,
    stem,
    stem_places,
    told_senses,
)


@pytest.fixture(scope="module")
def bank(make_concept: Callable[..., Concept], make_sense: Callable[..., Sense]) -> Concept:
    money = make_sense("money", domains=frozenset({"finance"}), cues={stem("loan"): 2.0, stem("deposits"): 1.0})
    river = make_sense("river", domains=frozenset({"geography"}), cues={stem("water"): 2.0, stem("muddy"): 1.5})
    shot = make_sense("shot", cues={stem("billiards"): 3.0})
    return make_concept("bank", senses=(money, river, shot))


def judge(concept: Concept, text: str, domain: str | None = None) -> tuple[dict[str, float], dict[str, list[str]]]:
    return intended_senses(concept, stem_places(text), text.lower().index("bank") + 4, domain)


@pytest.mark.parametrize("domain", [None, "astronomy"])
def test_without_evidence_all_senses_are_equally_likely(bank: Concept, domain: str | None) -> None:
    probabilities, evidence = judge(bank, "We walked past the bank yesterday.", domain)
    assert probabilities == pytest.approx({"money": 1 / 3, "river": 1 / 3, "shot": 1 / 3})
    assert evidence == {"money": [], "river": [], "shot": []}


def test_cue_weights_add_up_over_distinct_stems(bank: Concept) -> None:
    probabilities, evidence = judge(bank, "The bank: a loan, two loans and deposits, by the water.")
    powers = [math.exp(3.0), math.exp(2.0), 1.0]
    assert list(probabilities.values()) == pytest.approx([power / sum(powers) for power in powers])
    assert evidence == {"money": ["loan", "deposits"], "river": ["water"], "shot": []}


@pytest.mark.parametrize(
    ("text", "powers"),
    [
        ("A loan, two loans and deposits: the bank by the water.", (3.0, 0.0, 0.0)),
        ("The bank by the water gave a loan.", (0.0, 0.0, 0.0)),
        ("Muddy loan at the bank, the muddy one.", (2.0, 1.5, 0.0)),
    ],
)
def test_what_is_told_is_what_stands_before(bank: Concept, text: str, powers: tuple[float, ...]) -> None:
    told = told_senses(bank, stem_places(text), text.index("bank"))
    assert list(told) == ["money", "river", "shot"]
    assert list(told.values()) == pytest.approx(softmax(list(powers)))


def test_cues_match_any_inflection_and_case(bank: Concept) -> None:
    probabilities, evidence = judge(bank, "the bank has LOANS")
    assert max(probabilities, key=probabilities.__getitem__) == "money"
    assert evidence["money"] == ["loans"]


def test_a_declared_domain_speaks_for_its_senses_and_comes_first(bank: Concept) -> None:
    probabilities, evidence = judge(bank, "the bank gave a loan", "FINANCE")
    assert evidence["money"] == ["domain: finance", "loan"]
    assert math.log(probabilities["money"] / probabilities["shot"]) == pytest.approx(DOMAIN_LOGIT + 2.0)


def test_enough_words_outweigh_the_domain(bank: Concept, make_sense: Callable[..., Sense]) -> None:
    cues = {stem(word): 1.5 for word in ("reeds", "otter", "flood")}
    senses = (make_sense("money", domains=frozenset({"finance"})), make_sense("river", cues=cues))
    concept = Concept(**(vars(bank) | {"senses": senses}))
    probabilities, _ = judge(concept, "the bank with an otter in the reeds after the flood", "finance")
    assert probabilities["river"] > 0.5


def test_negative_cues_count_but_are_no_evidence(bank: Concept, make_sense: Callable[..., Sense]) -> None:
    senses = (make_sense("money", cues={stem("muddy"): -2.0}), make_sense("river"))
    probabilities, evidence = judge(Concept(**(vars(bank) | {"senses": senses})), "the bank is muddy")
    assert probabilities["money"] < 0.2
    assert evidence["money"] == []


def test_the_mention_itself_is_no_evidence(bank: Concept, make_sense: Callable[..., Sense]) -> None:
    senses = (make_sense("money", cues={stem("bank"): 5.0}), make_sense("river"))
    concept = Concept(**(vars(bank) | {"senses": senses}))
    assert judge(concept, "by the bank")[0]["money"] == pytest.approx(0.5)
    assert judge(concept, "by the bank of the Bank")[0]["money"] > 0.9


def test_words_before_the_mention_are_no_evidence(bank: Concept) -> None:
    probabilities, evidence = judge(bank, "A loan, deposits and loans, but this bank has muddy water.")
    assert max(probabilities, key=probabilities.__getitem__) == "river"
    assert evidence["money"] == []


def test_stems_know_their_words_and_where_they_stand() -> None:
    places = stem_places("Loans, loan, café don't 42")
    assert places == {"loan": [(0, "loans"), (7, "loan")], stem("café"): [(13, "café")], stem("don't"): [(18, "don't")]}
    assert context_stems("Loans, bank, loan", 7, 11) == {"loan"}
    assert context_stems("river bank", 6, 10) == {"river"}


@given(st.text(max_size=60), st.integers(0, 60), st.integers(0, 10))
def test_probabilities_sum_to_one_for_any_text(bank: Concept, text: str, start: int, length: int) -> None:
    probabilities, _ = intended_senses(bank, stem_places(text), start + length, "finance")
    assert sum(probabilities.values()) == pytest.approx(1.0)
    assert all(0 <= value <= 1 for value in probabilities.values())


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=6), st.floats(-1e3, 1e3))
def test_softmax_orders_sums_to_one_and_ignores_shifts(scores: list[float], shift: float) -> None:
    result = softmax(scores)
    assert sum(result) == pytest.approx(1.0)
    assert max(result) == result[scores.index(max(scores))]
    assert softmax([score + shift for score in scores]) == pytest.approx(result, abs=1e-6)


def pack(contexts: dict[str, str], cues: dict[str, list[str]]) -> ConceptPack:
    """A concept whose senses repeat one context each; held-out contexts hold a word of their own."""
    senses = {}
    for name, text in contexts.items():
        fit = [f"{text} [bank] filler{name}{number}" for number in range(12)]
        held_out = [f"secret{name} [bank] filler{name}{number}" for number in range(12, 16)]
        senses[name] = SensePack(
            gloss=f"the {name}",
            note="{mention} is " + name,
            domains=[name],
            cues=cues.get(name, []),
            contexts=fit,
            held_out=held_out,
        )
    return ConceptPack(concept="bank", forms=["bank"], senses=senses)


def test_cues_are_the_smoothed_log_odds_of_a_stem() -> None:
    weights = fit_cues(pack({"money": "lenders charge", "river": "otters dive"}, {"money": ["vault"]}))
    assert weights["money"][stem("lenders")] == pytest.approx(math.log(12.5 / 0.5), abs=1e-3)
    assert weights["money"][stem("vault")] == pytest.approx(math.log(4.5 / 0.5), abs=1e-3)
    assert stem("lenders") not in weights["river"]


def test_shared_words_function_words_forms_and_held_out_words_are_no_cues() -> None:
    weights = fit_cues(pack({"money": "because shared lenders bank's", "river": "shared with the otters"}, {}))
    stems = set().union(*weights.values())
    for word in ("because", "with", "the", "shared", "bank", "secretmoney", "secretriver"):
        assert stem(word) not in stems, word
    assert {stem("lenders"), stem("otters")} <= stems


def test_shipped_packs_give_every_sense_positive_cues() -> None:
    for concept in load_packs(["figurative"])["figurative"]:
        for name, weights in fit_cues(concept).items():
            assert weights, f"{concept.concept}.{name} has no cue"
            assert min(weights.values()) > 0
