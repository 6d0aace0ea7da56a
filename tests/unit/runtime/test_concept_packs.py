"""The shipped concept packs keep the format's promises; malformed packs are refused with file and fault."""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from yaml_trouble import BOMB, ODD_YAML

from sae_runtime.catalog.packs import ConceptPack, load_concept, load_packs, parse_context
from sae_runtime.detector.mentions import fold
from sae_runtime.errors import InputError, PackError
from sae_runtime.evaluation.prompts import (
    PlantedPrompt,
    calibration_prompts,
    example_prompts,
    glossaries,
    planted_prompts,
)
from sae_runtime.paths import PACKS

SHIPPED = load_packs()
CONCEPTS = [concept for concepts in SHIPPED.values() for concept in concepts]
each_concept = pytest.mark.parametrize("concept", CONCEPTS, ids=lambda concept: concept.concept)


def bare(marked: str) -> str:
    """A context without brackets, case and punctuation."""
    return re.sub(r"\W+", " ", marked.lower()).strip()


def contexts_of(concept: ConceptPack) -> list[str]:
    return [text for sense in concept.senses.values() for text in [*sense.contexts, *sense.held_out]]


def test_three_packs_with_at_least_eighty_concepts_are_shipped() -> None:
    assert sorted(SHIPPED) == ["arithmetic", "figurative", "homographs"]
    assert len(CONCEPTS) >= 80


def test_each_file_is_named_after_its_concept() -> None:
    assert sorted(path.stem for path in PACKS.rglob("*.yaml")) == sorted(concept.concept for concept in CONCEPTS)


@each_concept
def test_senses_are_balanced_and_a_quarter_is_held_out(concept: ConceptPack) -> None:
    parts = {(len(sense.contexts), len(sense.held_out)) for sense in concept.senses.values()}
    assert len(concept.senses) >= 2
    assert len(parts) == 1, f"senses have different numbers of contexts: {parts}"
    fit, held_out = parts.pop()
    assert fit + held_out >= 16
    assert held_out >= (fit + held_out) / 4


@each_concept
def test_every_bracketed_mention_is_a_form_between_word_borders(concept: ConceptPack) -> None:
    forms = {fold(form) for form in concept.forms}
    for marked in contexts_of(concept):
        context = parse_context(marked)
        assert fold(context.mention) in forms
        assert not context.text[: context.start][-1:].isalnum()
        assert not context.text[context.end :][:1].isalnum()


@pytest.mark.parametrize("pack", SHIPPED)
def test_no_context_occurs_twice_in_a_pack(pack: str) -> None:
    counts = Counter(bare(text) for concept in SHIPPED[pack] for text in contexts_of(concept))
    assert [text for text, count in counts.items() if count > 1] == []


def test_no_form_belongs_to_two_concepts() -> None:
    counts = Counter(fold(form) for concept in CONCEPTS for form in {fold(form) for form in concept.forms})
    assert [form for form, count in counts.items() if count > 1] == []


@pytest.mark.parametrize("name", ["calibration", "examples", "dev", "plain", "test"])
def test_planted_prompts_name_shipped_senses_and_are_no_pack_contexts(name: str) -> None:
    prompts = planted_prompts(name)
    concepts = {concept.concept: concept for concept in CONCEPTS}
    contexts = {bare(text) for concept in CONCEPTS for text in contexts_of(concept)}
    for prompt in prompts:
        assert prompt.intended in concepts[prompt.concept].senses, prompt.id
        assert prompt.mention.lower() in [form.lower() for form in concepts[prompt.concept].forms], prompt.id
        assert bare(prompt.prompt) not in contexts, prompt.id
        assert prompt.mention in prompt.prompt, prompt.id
        assert prompt.domain is None or prompt.domain in concepts[prompt.concept].senses[prompt.intended].domains
        assert (prompt.domain is not None) if prompt.kind == "domain" else prompt.kind in ("garden-path", "plain")


def test_dev_and_test_prompts_share_no_concept_and_no_run_of_six_words() -> None:
    def runs(prompts: list[PlantedPrompt]) -> set[tuple[str, ...]]:
        words = [bare(prompt.prompt).split() for prompt in prompts]
        return {tuple(own[i : i + 6]) for own in words for i in range(len(own) - 5)}

    dev, test = [*planted_prompts("dev"), *planted_prompts("plain")], planted_prompts("test")
    assert not {p.concept for p in dev} & {p.concept for p in test}
    assert not runs(dev) & runs(test)
    assert sum(p.kind != "plain" for p in [*dev, *test]) >= 400


def test_glossary_prompts_name_terms_of_their_companies() -> None:
    for prompt in planted_prompts("glossary"):
        assert prompt.glossary is not None
        terms = {term.slug: term for term in glossaries()[prompt.glossary].terms}
        assert terms[f"glossary:{prompt.concept}"].mention(prompt.prompt) is not None, prompt.id


def test_an_unknown_set_of_prompts_is_refused() -> None:
    with pytest.raises(InputError, match=r"no set of prompts 'none'.*calibration, dev"):
        planted_prompts("none")


def test_thresholds_are_chosen_on_other_prompts_than_the_examples() -> None:
    shared = {bare(p.prompt) for p in calibration_prompts()} & {bare(p.prompt) for p in example_prompts()}
    assert shared == set()


plain = st.text(st.characters(exclude_characters="[]"))


@given(plain, st.text("ab ", min_size=1), plain)
def test_a_context_loses_its_brackets_and_nothing_else(before: str, mention: str, after: str) -> None:
    context = parse_context(f"{before}[{mention}]{after}")
    assert context.text == before + mention + after
    assert (context.mention, context.start) == (mention, len(before))


@pytest.mark.parametrize("marked", ["no mention", "[two] of [them]", "an empty [] one"])
def test_a_context_needs_exactly_one_mention(marked: str) -> None:
    with pytest.raises(ValueError, match="exactly one"):
        parse_context(marked)


def sense(word: str) -> dict[str, Any]:
    texts = [f"{word} number {n} near the [tip] of it" for n in range(16)]
    note = f'Here "{{mention}}" means {word}.'
    return {"gloss": f"the {word}", "note": note, "domains": [word], "cues": [f"{word}cue"],
            "contexts": texts[:12], "held_out": texts[12:]}  # fmt: skip


SOUND: dict[str, Any] = {"concept": "tip", "forms": ["tip"], "senses": {"advice": sense("hint"), "end": sense("point")}}


def edited(change: Callable[[dict[str, Any]], Any]) -> str:
    """The sound concept as YAML after ``change``."""
    concept = copy.deepcopy(SOUND)
    change(concept)
    return yaml.safe_dump(concept, sort_keys=False, allow_unicode=True)


def with_sense(**fields: Any) -> str:
    """The sound concept with other fields in its sense ``end``."""
    return edited(lambda concept: concept["senses"]["end"].update(fields))


def with_context(marked: str) -> str:
    """The sound concept with one other context."""
    return with_sense(contexts=[marked, *SOUND["senses"]["end"]["contexts"][1:]])


def test_a_sound_concept_loads(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "tip.yaml").write_text(edited(lambda c: None), "utf-8")
    concept = load_packs(folder=tmp_path)["mine"][0]
    assert list(concept.senses) == ["advice", "end"]
    assert len(concept.senses["end"].labelled(held_out=True)) == 4


CONTEXTS, HELD_OUT = SOUND["senses"]["end"]["contexts"], SOUND["senses"]["end"]["held_out"]
MALFORMED: dict[str, tuple[str, str]] = {
    "no YAML": ("concept: [tip", "cannot be read"),
    "empty file": ("", "valid dictionary"),
    "a list": ("- tip", "valid dictionary"),
    "field missing": (edited(lambda concept: concept.pop("forms")), "forms"),
    "unknown field": (edited(lambda concept: concept.update(colour="red")), "colour"),
    "slug with capitals": (edited(lambda concept: concept.update(concept="Tip")), "concept"),
    "one sense": (edited(lambda concept: concept["senses"].pop("end")), "senses"),
    "sense name read as a boolean": (edited(lambda concept: concept["senses"].update({False: sense("x")})), "senses"),
    "no domain": (with_sense(domains=[]), "senses.end.domains"),
    "note without mention": (with_sense(note="It is a point."), r"\{mention\} exactly once"),
    "note too long": (with_sense(note="{mention}" + "x" * 300), "240 characters"),
    "too few contexts": (with_sense(contexts=CONTEXTS[1:]), "needs 16 contexts"),
    "too few held out": (with_sense(contexts=["a [tip]", *CONTEXTS]), "a quarter held out"),
    "context without mention": (with_context("none"), r"exactly one \[mention\]"),
    "mention is no form": (with_context("a [tap]"), r"\[tap\] is not among"),
    "duplicate context": (with_context("HINT number 1, near the [tip] of it"), "duplicate context"),
    "cue of two senses": (with_sense(cues=["HintCue"]), "cue 'HintCue' belongs to two"),
    "domain of two senses": (with_sense(domains=["Hint"]), "domain 'Hint' belongs to two"),
}


@pytest.mark.parametrize(("text", "fault"), MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_concept_is_refused_with_file_and_fault(tmp_path: Path, text: str, fault: str) -> None:
    path = tmp_path / "tip.yaml"
    path.write_text(text, "utf-8")
    with pytest.raises(PackError, match=fault) as caught:
        load_concept(path)
    assert str(path) in caught.value.message
    assert caught.value.remedy


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "tip.yaml").write_bytes(b"concept: \xff\xfe")
    with pytest.raises(PackError, match=r"tip\.yaml"):
        load_concept(tmp_path / "tip.yaml")


@pytest.mark.parametrize("names", [["homographs", "nonesuch"], None], ids=["named", "all"])
def test_an_absent_pack_is_refused(tmp_path: Path, names: list[str] | None) -> None:
    folder = PACKS if names else tmp_path / "nonesuch"
    with pytest.raises(PackError, match="nonesuch"):
        load_packs(names, folder)


def test_a_concept_in_two_packs_is_refused(tmp_path: Path) -> None:
    for pack in ("one", "two"):
        (tmp_path / pack).mkdir()
        (tmp_path / pack / "tip.yaml").write_text(edited(lambda c: None), "utf-8")
    with pytest.raises(PackError, match="tip occur in several packs"):
        load_packs(folder=tmp_path)


@pytest.mark.parametrize("value", ODD_YAML)
def test_values_on_which_the_yaml_library_stumbles_are_refused(tmp_path: Path, value: str) -> None:
    """Found by fuzzing: errors of the library's conversions, and of very deep nesting, went through."""
    path = tmp_path / "tip.yaml"
    path.write_text(f"concept: {value}\n", "utf-8")
    with pytest.raises(PackError, match=r"tip\.yaml"):
        load_concept(path)


def test_a_few_lines_that_stand_for_a_billion_items_are_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "tip.yaml"
    path.write_text(BOMB + "concept: *a8\n", "utf-8")
    with pytest.raises(PackError, match="more than 1000000 values"):
        load_concept(path)


def test_parts_of_a_file_may_be_named_and_used_again(tmp_path: Path) -> None:
    path = tmp_path / "tip.yaml"
    text = edited(lambda concept: None).replace("- hint\n", "- &h hint\n", 1).replace("- hintcue\n", "- *h\n", 1)
    path.write_text(text, "utf-8")
    assert load_concept(path).senses["advice"].cues == ["hint"]
