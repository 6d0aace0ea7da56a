"""The whole reading on the real small model with its shipped SAE and catalog."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
from safetensors.torch import load_file, save_file

from middleware import SAEAnnotator
from sae_runtime.detector import Inspector
from sae_runtime.errors import ArtefactError, CatalogError, FingerprintError, InputError
from sae_runtime.evaluation.prompts import example_prompts
from sae_runtime.models import resolve_model
from sae_runtime.paths import ARTEFACTS, CATALOG_FILE, SAE_WEIGHTS_FILE, artefacts_for
from sae_runtime.serving import ModelServer, ServerOptions

pytestmark = pytest.mark.model


def read(inspector: Inspector, text: str, domain: str | None = None):
    return inspector.inspect([{"role": "user", "content": text}], domain=domain)


def test_every_concept_of_the_catalog_has_a_reading_better_than_chance(inspector):
    assert len(inspector.view.concepts) >= 80
    mean = sum(concept.accuracy for concept in inspector.view.concepts) / len(inspector.view.concepts)
    assert mean > 0.8


@pytest.mark.parametrize(
    ("text", "concept", "sense"),
    [
        ("The farmer's crane flew over the marsh with the other birds and landed in its nest.", "crane", "bird"),
        ("The builders used the crane to lift steel beams to the tenth floor of the tower.", "crane", "machine"),
        ("We sat on the grassy bank of the river and watched the water flow past.", "bank", "river"),
        ("The bank refused my loan because my account was overdrawn and the interest was unpaid.", "bank", "finance"),
    ],
)
def test_clear_sentences_are_read_as_meant(inspector, text, concept, sense):
    mention = next(m for m in read(inspector, text).mentions if m.concept == concept)
    assert max(mention.reading, key=mention.reading.get) == sense
    assert text[mention.start : mention.end].lower() == mention.text.lower()


def test_readings_are_deterministic_and_probabilities_sum_to_one(inspector):
    text = "The bass was too heavy to carry up the stairs, and the organ was out of tune."
    first, second = read(inspector, text), read(inspector, text)
    assert first.mentions == second.mentions
    assert first.misreads == second.misreads
    assert len(first.mentions) == 2
    for mention in first.mentions:
        assert sum(mention.reading.values()) == pytest.approx(1, abs=1e-3)
        assert sum(mention.intended.values()) == pytest.approx(1, abs=1e-3)


def test_a_declared_domain_settles_the_intended_sense(inspector):
    mention = read(inspector, "How often should I clean my mouse?", "biology").mentions[0]
    assert mention.intended["animal"] > 0.9


def test_a_picked_sense_is_noted_however_it_is_read(inspector):
    messages = [{"role": "user", "content": "We sat on the grassy bank of the river and watched the water flow past."}]
    assert inspector.inspect(messages).misreads == []
    for sense in ("river", "finance"):
        (misread,) = inspector.inspect(messages, picks={"bank": sense}).misreads
        assert (misread.intended, misread.read_as, misread.evidence) == (sense, "river", ["your choice"])
        assert misread.note


@pytest.mark.parametrize("picks", [{"bank": "sofa"}, {"nonsense": "river"}])
def test_a_pick_that_does_not_exist_is_refused(inspector, picks):
    with pytest.raises(InputError, match=r"cannot be picked"):
        inspector.inspect([{"role": "user", "content": "The bank."}], picks=picks)


def test_a_flag_says_why(inspector):
    flagged = [
        misread
        for text, domain in [
            ("How often should I clean my mouse?", "biology"),
            ("Which charger port should I buy from for a good dessert?", None),
            ("Is there a quick way to clear the jam on the road?", "cooking"),
            ("Which shell is the best one to use at home?", "biology"),
            ("How do I keep a python happy?", "computing"),
            ("How do I get better at juggling meetings and clients?", "physical action"),
            ("Tell me how to look after a bat.", "sports"),
            ("What is a good bass to buy?", "fishing"),
        ]
        for misread in read(inspector, text, domain).misreads
    ]
    assert flagged
    for misread in flagged:
        assert misread.read_as != misread.intended
        assert misread.p_intended > 0.5
        assert misread.note and misread.text in misread.note
        assert misread.features and all(feature.label for feature in misread.features)


def test_a_prompt_beyond_the_context_is_read_by_its_head_and_says_so(inspector):
    reading = read(inspector, "The bank of the river. " + "word " * 9000)
    assert reading.truncated
    assert reading.mentions[0].concept == "bank"
    assert len(reading.tokens) == inspector.engine.context_length


@pytest.mark.parametrize("text", ["", "  \n "])
def test_an_empty_prompt_is_a_typed_error(inspector, text):
    with pytest.raises(InputError):
        read(inspector, text)


def test_only_asked_messages_are_searched_for_mentions(inspector):
    messages = [
        {"role": "user", "content": "I went to the bank."},
        {"role": "assistant", "content": "Which bank?"},
        {"role": "user", "content": "Tell me more."},
    ]
    assert inspector.inspect(messages).mentions == []
    assert [m.message for m in inspector.inspect(messages, read=[0]).mentions] == [0]


@pytest.fixture
def artefacts(tmp_path, small_model):
    return shutil.copytree(artefacts_for(small_model), tmp_path / "artefacts")


def test_an_exchanged_sae_is_refused(artefacts, small_model):
    weights = load_file(artefacts / SAE_WEIGHTS_FILE)
    weights["b_enc"] += 1
    save_file(weights, artefacts / SAE_WEIGHTS_FILE)
    with pytest.raises(FingerprintError):
        Inspector.from_model(small_model, artefacts=artefacts)
    with pytest.raises(FingerprintError):  # vLLM's worker would load it without looking at the catalog
        ModelServer.start(small_model, ServerOptions(port=0, artefacts=artefacts))


def test_a_truncated_sae_is_refused(artefacts, small_model):
    path = artefacts / SAE_WEIGHTS_FILE
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ArtefactError):
        Inspector.from_model(small_model, artefacts=artefacts)


def test_a_missing_or_corrupt_catalog_is_refused(artefacts, small_model):
    (artefacts / CATALOG_FILE).write_bytes(b"not a database" * 100)
    with pytest.raises(CatalogError):
        Inspector.from_model(small_model, artefacts=artefacts)
    (artefacts / CATALOG_FILE).unlink()
    with pytest.raises(CatalogError):
        Inspector.from_model(small_model, artefacts=artefacts)


def test_a_catalog_of_another_model_is_refused(small_model, tmp_path):
    others = [path for path in ARTEFACTS.iterdir() if path.is_dir() and path.name != small_model]
    assert others, "both built-in models ship artefacts"
    with pytest.raises(FingerprintError, match="another model"):
        Inspector.from_model(str(resolve_model(small_model).path), artefacts=others[0])


def test_the_annotator_from_catalog_reads_in_process(small_model):
    annotator = SAEAnnotator.from_catalog(small_model, domain="biology", deadline=60)
    result = annotator.annotate("How often should I clean my mouse?")
    assert result.bypass is None
    assert result.reading is not None and result.reading.mentions[0].concept == "mouse"


def test_a_sense_whose_note_did_not_help_is_read_but_not_flagged(inspector):
    asked = [([{"role": "user", "content": p.prompt}], {"domain": p.domain}) for p in example_prompts()]
    readings = inspector.inspect_batch(asked)
    number, flag = next((n, r.misreads[0]) for n, r in enumerate(readings) if r.misreads)
    concept = next(c for c in inspector.view.concepts if c.slug == flag.concept)
    senses = tuple(replace(sense, noted=sense.slug != flag.intended) for sense in concept.senses)
    muted = inspector.detector.with_concepts([replace(concept, senses=senses)])
    plan = muted.plan(asked[number][0], **asked[number][1])
    reading = muted.reading(plan, inspector.features([plan])[0])
    assert flag.concept in {mention.concept for mention in reading.mentions}
    assert flag.concept not in {misread.concept for misread in reading.misreads}
