"""A deployer's terms: how they are written, how few sentences become a readout, and where compiled ones are kept."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.linear_model import Ridge
from yaml_trouble import ODD_YAML

from sae_runtime.catalog.view import CatalogView, Concept, Feature
from sae_runtime.detector import Detector, Plan
from sae_runtime.detector.detector import Readout, misread_senses
from sae_runtime.detector.mentions import MentionFinder
from sae_runtime.engines.chat import ChatEncoder
from sae_runtime.engines.features import PromptFeatures
from sae_runtime.errors import EngineError, InputError
from sae_runtime.glossary import Glossary, Term
from sae_runtime.glossary.cache import _KEPT, GlossaryCache
from sae_runtime.glossary.compile import (
    _RIDGE,
    MEANT,
    MIN_ACCURACY,
    MIN_EXAMPLES,
    OTHER,
    LabelledText,
    dual_ridge,
    fit_term,
    plans,
    sentences,
    with_glossary,
)
from sae_runtime.glossary.terms import MAX_EXAMPLES, MAX_TERMS
from sae_runtime.models import ModelFingerprint
from sae_runtime.serving.service import ReadingService

Array = NDArray[np.float64]

CHURN = {"meaning": "customers who leave", "otherwise": "stirring milk"}
LEAD = {"meaning": "a likely customer", "otherwise": ["a grey metal", "the front place"]}


def term(name: str = "churn", **fields: Any) -> Term:
    return Term.model_validate({"term": name, **CHURN, **fields})


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


# The regression.


def weighting(y: Array) -> tuple[Array, Array]:
    """Weights of rows: in shares of one, and with a mean of one."""
    balance = np.where(y > 0, 0.5 / (y > 0).sum(), 0.5 / (y <= 0).sum())
    return balance, balance * len(y)


def direct(x: Array, y: Array, weight: Array, ridge: float, *, intercept: bool = True) -> Ridge:
    return Ridge(alpha=ridge, fit_intercept=intercept, solver="cholesky").fit(x, y, sample_weight=weight)


def ridge_of(x: Array, y: Array) -> float:
    """The ridge that :func:`dual_ridge` takes: a share of the mean squared norm of centred rows."""
    centred = x - weighting(y)[0] @ x
    return _RIDGE * float((centred**2).sum(1).mean())


def problem(positive: int, negative: int, width: int, seed: int) -> tuple[Array, Array]:
    """Random non-negative features, as pooled ones are, and labels."""
    random = np.random.default_rng(seed)
    return np.abs(random.normal(size=(positive + negative, width))), np.repeat([1.0, -1.0], [positive, negative])


problems = st.builds(problem, st.integers(2, 12), st.integers(2, 12), st.integers(1, 60), st.integers(0, 10_000))


@given(problems)
def test_the_dual_solution_is_the_weighted_ridge_regression(case: tuple[Array, Array]) -> None:
    x, y = case
    weights, bias, _ = dual_ridge(x, y)
    model = direct(x, y, weighting(y)[1], ridge_of(x, y))
    np.testing.assert_allclose(weights, model.coef_, atol=1e-7)
    assert bias == pytest.approx(model.intercept_, abs=1e-7)


def refitted(x: Array, y: Array) -> Array:
    """Leave-one-out predictions the slow way: everything but the ridge and the weights of rows is fitted anew."""
    weight, ridge = weighting(y)[1], ridge_of(x, y)
    found = []
    for row in range(len(y)):
        others = np.arange(len(y)) != row
        found.append(direct(x[others], y[others], weight[others], ridge).predict(x[row : row + 1])[0])
    return np.array(found)


@given(problems)
def test_left_out_predictions_are_those_of_a_fit_without_the_row(case: tuple[Array, Array]) -> None:
    x, y = case
    np.testing.assert_allclose(dual_ridge(x, y)[2], refitted(x, y), atol=1e-5)


def test_noise_is_not_told_apart() -> None:
    accuracies = []
    for seed in range(20):
        x, y = problem(6, 6, 500, seed)
        accuracies.append(((dual_ridge(x, y)[2] > 0) == (y > 0)).mean())
    assert np.mean(accuracies) < MIN_ACCURACY


def test_rows_that_are_all_alike_say_nothing() -> None:
    y = np.repeat([1.0, -1.0], [4, 2])
    weights, bias, left_out = dual_ridge(np.ones((6, 4)), y)
    np.testing.assert_allclose(weights, 0, atol=1e-9)
    assert bias == pytest.approx(0)
    assert (left_out * y < 0).all()  # without a row the rest speaks for the other side


# A term's readout.


def labelled(meant: Sequence[bool], *, given: bool = True) -> list[LabelledText]:
    return [LabelledText("churn", 0, 5, is_meant, given) for is_meant in meant]


def read(concept: Concept, pooled: Array) -> dict[str, float]:
    readout = Readout.of(concept)
    return readout.senses(pooled[readout.latents])


def separable(rows: Sequence[bool], seed: int, *, width: int = 30) -> Array:
    """Features of which the first three fire where the term is meant and the next three where it is not."""
    random = np.random.default_rng(seed)
    pooled = np.abs(random.normal(scale=0.05, size=(len(rows), width)))
    for row, is_meant in enumerate(rows):
        pooled[row, :3] += is_meant
        pooled[row, 3:6] += not is_meant
    return pooled


SIDES = [True] * 6 + [False] * 6
DECLARED = {MEANT: 0.98, OTHER: 0.02}


@given(st.integers(0, 1000))
def test_a_term_that_can_be_told_apart_is_read_right(seed: int) -> None:
    concept = fit_term(term(), labelled(SIDES), separable(SIDES, seed))
    assert concept.accuracy == 1.0
    for is_meant in (True, False):
        (fresh,) = separable([is_meant], seed + 5000)
        reading = read(concept, fresh)
        assert (reading[MEANT] > 0.9) == is_meant
        assert sum(reading.values()) == pytest.approx(1)
        verdict = misread_senses(concept, reading, DECLARED)
        assert verdict == (None if is_meant else (OTHER, MEANT))


def test_a_term_becomes_a_concept_of_what_is_meant_and_the_rest() -> None:
    concept = fit_term(term("Lead time", **LEAD, note="Mind {mention}."), labelled(SIDES), separable(SIDES, 0))
    assert (concept.slug, concept.pack, concept.declared) == ("glossary:lead-time", "glossary", MEANT)
    assert concept.forms == ("lead time", "lead times")
    meant, other = concept.senses
    assert (meant.slug, meant.gloss, meant.note) == (MEANT, "a likely customer", "Mind {mention}.")
    assert (other.slug, other.gloss) == (OTHER, "a grey metal; the front place")
    assert meant.bias == -other.bias
    assert meant.weights == {latent: -weight for latent, weight in other.weights.items()}


@given(st.integers(MIN_EXAMPLES, 6), st.integers(0, 1000), st.floats(0, 50))
def test_a_term_that_cannot_be_told_apart_never_flags(examples: int, seed: int, scale: float) -> None:
    rows = [True] * examples + [False] * examples
    concept = fit_term(term(), labelled(rows), np.ones((len(rows), 8)))
    assert concept.accuracy < MIN_ACCURACY
    pooled = scale * np.abs(np.random.default_rng(seed).normal(size=8))
    for certain in ({MEANT: 0.0, OTHER: 1.0}, read(concept, pooled)):
        assert misread_senses(concept, certain, {MEANT: 1.0, OTHER: 0.0}) is None


@pytest.mark.parametrize("others", [MIN_EXAMPLES, 9, MAX_EXAMPLES])
def test_many_sentences_on_one_side_do_not_make_a_term_that_cannot_be_told_apart_trusted(others: int) -> None:
    rows = [True] * MIN_EXAMPLES + [False] * others
    concept = fit_term(term(), labelled(rows), np.ones((len(rows), 8)))
    assert concept.accuracy < MIN_ACCURACY
    assert misread_senses(concept, {MEANT: 0.0, OTHER: 1.0}, {MEANT: 1.0, OTHER: 0.0}) is None


def test_labels_that_contradict_the_features_are_not_trusted() -> None:
    crossed = [
        is_meant != bool(number % 2) for number, is_meant in enumerate(SIDES)
    ]  # half of each side fires as the other
    concept = fit_term(term(), labelled(SIDES), separable(crossed, 0, width=6))
    assert concept.accuracy < MIN_ACCURACY
    assert misread_senses(concept, {MEANT: 0.0, OTHER: 1.0}, {MEANT: 1.0, OTHER: 0.0}) is None


def test_made_sentences_do_not_count_for_the_accuracy() -> None:
    texts = [*labelled(SIDES), *labelled(SIDES, given=False)]
    pooled = np.vstack([separable(SIDES, 0), separable(SIDES[::-1], 1)])  # the made ones contradict
    alone = fit_term(term(), labelled(SIDES), separable(SIDES, 0))
    assert fit_term(term(), texts, pooled).accuracy <= alone.accuracy == 1.0
    assert fit_term(term(), labelled(SIDES, given=False), separable(SIDES, 0)).accuracy == 0.0


# The detector.

WIDTH = 8


@pytest.fixture(scope="module")
def detector(tokenizer_folder: Callable[..., Path], make_concept: Any, make_sense: Any) -> Detector:
    """Knows "bank" and "bat" (also "bats"); the two senses of each read latents 0 and 1."""
    senses = (make_sense("first", weights={0: 5.0}), make_sense("second", weights={1: 5.0}))
    concepts = (make_concept("bank", senses=senses), make_concept("bat", senses=senses, forms=("bat", "bats")))
    fingerprint = ModelFingerprint(weights="w", config="c", tokenizer="t", chat_template="h")
    features = {number: Feature(number, f"f{number}", 0.1) for number in range(WIDTH)}
    return Detector(
        CatalogView("tiny", fingerprint, 0, "s", features, concepts, {}), ChatEncoder(tokenizer_folder()), 512
    )


EXAMPLES = {
    "examples": [f"Our churn of customers in week {number}" for number in range(4)],
    "counterexamples": [f"The churn of milk in week {number}" for number in range(4)],
}


def features_of(plan: Plan) -> PromptFeatures:
    """Latent 2 at every token where the conversation has "customers", else latent 3."""
    count = len(plan.chat.token_ids)
    latent = 2 if "customers" in plan.messages[0]["content"] else 3
    return PromptFeatures(
        np.ones(count, bool),
        np.arange(count, dtype=np.int32),
        np.full(count, latent, np.int32),
        np.ones(count, np.float32),
    )


def compiled(detector: Detector, terms: dict[str, Any]) -> Detector:
    glossary = Glossary.from_dict(terms)
    planned = plans(detector, glossary)
    return with_glossary(detector, glossary, planned, [[features_of(plan) for plan in some] for some in planned])


def judge(detector: Detector, text: str) -> Any:
    plan = detector.plan([{"role": "user", "content": text}], tokens=False)
    return detector.reading(plan, features_of(plan) if plan.needs_model else None)


def test_concepts_that_share_a_form_are_replaced(detector: Detector, make_concept: Any) -> None:
    other = make_concept("own", forms=("BATS", "club"))
    merged = detector.with_concepts([other])
    assert [concept.slug for concept in merged.view.concepts] == ["bank", "own"]
    assert [concept.slug for concept in detector.view.concepts] == ["bank", "bat"]  # the catalog's own stays as it is
    found = {name: [m.concept for m in judge(merged, name).mentions] for name in ("bat", "bats", "club", "bank")}
    assert found == {"bat": [], "bats": ["own"], "club": ["own"], "bank": ["bank"]}
    assert merged.width == detector.width


def test_a_compiled_glossary_reads_its_terms_beside_the_catalog(detector: Detector) -> None:
    merged = compiled(detector, {"churn": CHURN | EXAMPLES, "bat": LEAD})
    assert [concept.slug for concept in merged.view.concepts] == ["bank", "glossary:churn", "glossary:bat"]
    misread = judge(merged, "Our churns and the milk").misreads
    assert [(m.concept, m.text, m.read_as, m.intended, m.evidence) for m in misread] == [
        ("glossary:churn", "churns", OTHER, MEANT, ["glossary"])
    ]
    assert misread[0].note == '"churns" means customers who leave here.'
    assert judge(merged, "Our churn of customers").misreads == []
    assert [m.concept for m in judge(merged, "The bank and its churn").mentions] == ["bank", "glossary:churn"]


def test_a_term_without_readout_is_unknown_and_never_flags(detector: Detector) -> None:
    merged = compiled(detector, {"churn": {"meaning": "one thing", "otherwise": "another"}})  # latent 3 everywhere
    reading = judge(merged, "Our churn")
    assert [m.reading for m in reading.mentions] == [{MEANT: 0.5, OTHER: 0.5}]
    assert reading.misreads == []


@pytest.mark.parametrize("module", ["sae_runtime.glossary.compile", "sae_runtime.glossary.cache"])
def test_the_modules_can_be_imported_on_their_own(module: str) -> None:
    done = subprocess.run([sys.executable, "-c", f"import {module}"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# Where compiled glossaries are kept.


def numbered(number: int) -> Glossary:
    return Glossary.from_dict({f"term number {number}": CHURN})


def test_the_last_glossaries_that_were_used_are_kept() -> None:
    cache = GlossaryCache()
    detectors: list[Any] = [object() for _ in range(_KEPT + 1)]
    assert _KEPT == 32
    for number in range(_KEPT):
        assert cache.get(numbered(number)) is None
        assert cache.put(numbered(number), detectors[number]) is detectors[number]
    assert cache.get(numbered(0)) is detectors[0]  # used again, so that 1 is the oldest
    cache.put(numbered(_KEPT), detectors[_KEPT])
    kept = [number for number in range(_KEPT + 1) if cache.get(numbered(number)) is detectors[number]]
    assert kept == [0, *range(2, _KEPT + 1)]


def test_the_cache_may_be_shared_between_threads() -> None:
    cache = GlossaryCache()
    glossaries = [numbered(number) for number in range(2 * _KEPT)]
    both = threading.Barrier(4)
    wrong: list[Any] = []

    def work() -> None:
        both.wait(30)
        for glossary in glossaries * 5:
            found: Any = cache.get(glossary) or cache.put(glossary, SimpleNamespace(key=glossary.key))  # type: ignore[arg-type]
            if found.key != glossary.key:
                wrong.append(found)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(cache._detectors) == _KEPT


class Reader:
    """Brings features when ``release`` is set, or raises the next of ``errors``.

    Attributes:
        calls: texts whose features were asked for.
        begun: set when there was a call.
    """

    def __init__(self) -> None:
        self.release, self.begun = asyncio.Event(), asyncio.Event()
        self.errors: list[Exception] = []
        self.calls: list[str] = []

    async def features(self, plan: Plan) -> PromptFeatures:
        self.calls.append(plan.messages[0]["content"])
        self.begun.set()
        await self.release.wait()
        if self.errors:
            raise self.errors.pop()
        return features_of(plan)


GLOSSARY = Glossary.from_dict({"churn": CHURN | EXAMPLES})


def inspect(service: ReadingService, text: str = "Our churn and the milk", glossary: Glossary | None = GLOSSARY) -> Any:
    return service.inspect([{"role": "user", "content": text}], glossary=glossary, tokens=False)


async def test_concurrent_callers_share_one_compilation(detector: Detector) -> None:
    reader = Reader()
    service = ReadingService(detector, reader)  # type: ignore[arg-type]
    tasks = [asyncio.create_task(inspect(service)) for _ in range(8)]
    await reader.begun.wait()
    reader.release.set()
    readings = await asyncio.gather(*tasks)
    assert [len(reading.misreads) for reading in readings] == [1] * 8
    assert service.counters["glossaries"] == 1
    assert len([text for text in reader.calls if text != "Our churn and the milk"]) == len(sentences(GLOSSARY.terms[0]))
    assert len((await inspect(service)).misreads) == 1
    assert service.counters["glossaries"] == 1
    assert service._current.compiling == {}


async def test_a_caller_that_gives_up_does_not_end_the_compilation(detector: Detector) -> None:
    reader = Reader()
    service = ReadingService(detector, reader)  # type: ignore[arg-type]
    first, second = (asyncio.create_task(inspect(service)) for _ in range(2))
    await reader.begun.wait()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    reader.release.set()
    assert len((await second).misreads) == 1
    assert service.counters["glossaries"] == 1


async def test_a_compilation_that_nobody_waits_for_is_there_for_the_next(detector: Detector) -> None:
    reader = Reader()
    service = ReadingService(detector, reader)  # type: ignore[arg-type]
    only = asyncio.create_task(inspect(service))
    await reader.begun.wait()
    only.cancel()
    with pytest.raises(asyncio.CancelledError):
        await only
    (compiling,) = service._current.compiling.values()
    reader.release.set()
    await compiling
    asked = len(reader.calls)
    assert len((await inspect(service)).misreads) == 1
    assert len(reader.calls) == asked + 1  # the prompt alone
    assert service.counters["glossaries"] == 1


async def test_a_compilation_that_fails_is_tried_again(detector: Detector) -> None:
    reader = Reader()
    reader.release.set()
    reader.errors = [EngineError("Broken.", "Mend it.")]
    service = ReadingService(detector, reader)  # type: ignore[arg-type]
    with pytest.raises(EngineError):
        await inspect(service)
    assert len((await inspect(service)).misreads) == 1
    assert service.counters["glossaries"] == 1
    assert service.counters["failed"] == 1


async def test_a_glossary_holds_for_its_own_calls_alone(detector: Detector) -> None:
    reader = Reader()
    reader.release.set()
    service = ReadingService(detector, reader)  # type: ignore[arg-type]
    other = Glossary.from_dict({"milk": {"meaning": "customers", "otherwise": "a drink"}})
    found = await asyncio.gather(inspect(service), inspect(service, glossary=None), inspect(service, glossary=other))
    assert [[m.concept for m in reading.mentions] for reading in found] == [["glossary:churn"], [], ["glossary:milk"]]
    assert service.counters["glossaries"] == 2
