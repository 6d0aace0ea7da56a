"""A glossary's accepted terms can be keyed, compiled and read with; everything else is an InputError."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from hypothesis import strategies as st

from sae_runtime.catalog.view import CatalogView
from sae_runtime.detector import Detector
from sae_runtime.detector.mentions import fold
from sae_runtime.engines.features import PromptFeatures
from sae_runtime.errors import InputError
from sae_runtime.glossary import Glossary
from sae_runtime.glossary.compile import plans, sentences, with_glossary
from sae_runtime.models import ModelFingerprint

from ..damage import document_edits, edited
from ..files import scratch
from ..small_catalog import encoder
from ..texts import documents, texts
from ..yaml_files import CASES as YAML_CASES
from ..yaml_files import content

Case = tuple[str, Any]

_words = st.text("abAß İ'._-1", min_size=2, max_size=6) | texts(2)
_several = st.lists(_words, max_size=3)
_term = st.fixed_dictionaries(
    {"meaning": _words, "otherwise": _words | _several},
    optional={"forms": _several, "note": texts(2), "examples": _several, "counterexamples": _several, "term": _words},
)
CASES: st.SearchStrategy[Case] = st.one_of(
    st.tuples(st.just("terms"), st.dictionaries(_words, _term | _words, max_size=3)),
    st.tuples(st.just("edited"), document_edits(3)),
    st.tuples(st.just("dict"), st.dictionaries(texts(1) | st.just("terms"), documents(), max_size=3)),
    st.tuples(st.just("file"), YAML_CASES),
)
_WHOLE: dict[str, Any] = {
    "churn": {
        "meaning": "customers who leave", "otherwise": ["stirring milk"], "forms": ["churned"],
        "note": '"{mention}" means customers who leave.', "examples": ["Our churn rose in spring."],
        "counterexamples": ["She poured the cream into the churn."],
    },
    "runway": {"meaning": "months until the money is gone", "otherwise": "where aircraft land"},
    "terms of art": "words with a fixed meaning",
}  # fmt: skip
_WIDTH = 8


@cache
def _detector() -> Detector:
    fingerprint = ModelFingerprint(weights="", config="", tokenizer="", chat_template="")
    view = CatalogView("tiny", fingerprint, 0, "", {}, (), {})
    detector = Detector(view, encoder(), 512)
    detector.width = _WIDTH
    return detector


def check(case: Case) -> None:
    """See the module."""
    try:
        glossary = _glossary(*case)
    except InputError as error:
        assert error.message and error.remedy
        return
    assert Glossary.from_dict(glossary.model_dump()).key == glossary.key, "written again it is another glossary"
    assert len({term.slug for term in glossary.terms}) == len(glossary.terms)
    for term in glossary.terms:
        for labelled in sentences(term):
            assert fold(labelled.text[labelled.start : labelled.end]) in term.all_forms, "a place without the term"
    if len(glossary.terms) <= 3:
        _read(glossary)


def _glossary(kind: str, value: Any) -> Glossary:
    if kind == "file":
        path = scratch() / "glossary.yaml"
        path.write_bytes(content(_WHOLE, value))
        return Glossary.from_yaml(path)
    terms = edited(_WHOLE, value) if kind == "edited" else value
    return Glossary.from_dict(terms if isinstance(terms, dict) else {"terms": terms})


def _read(glossary: Glossary) -> None:
    """Compile it with features that differ by sentence, and read each term's name."""
    try:
        planned = plans(_detector(), glossary)
    except InputError:  # half a character
        return
    features = [[_features(len(plan.chat.token_ids)) for plan in some] for some in planned]
    detector = with_glossary(_detector(), glossary, planned, features)
    for term in glossary.terms:
        plan = detector.plan([{"role": "user", "content": f"About {term.term}."}], tokens=False)
        reading = detector.reading(plan, _features(len(plan.chat.token_ids)))
        for mention in reading.mentions:
            assert abs(sum(mention.reading.values()) - 1) < 1e-3, "no probabilities"


def _features(tokens: int) -> PromptFeatures:
    positions = np.arange(1, tokens, dtype=np.int32)
    return PromptFeatures(
        content=np.arange(tokens) > 0,
        positions=positions,
        latents=(positions * 7 + tokens) % _WIDTH,
        values=(positions % 5 + 0.5).astype(np.float32),
    )
