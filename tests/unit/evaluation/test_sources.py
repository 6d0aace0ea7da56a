"""Sources of the intended sense: an early reading against one of the whole prompt."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.sparse import csr_array

from sae_runtime.catalog.packs import ConceptPack, load_packs
from sae_runtime.catalog.view import Concept, Sense
from sae_runtime.evaluation.capture import LAST, Captured
from sae_runtime.evaluation.figures import sources
from sae_runtime.evaluation.items import Item, Split
from sae_runtime.evaluation.prompts import PlantedPrompt, planted_prompts
from sae_runtime.evaluation.sources import MENTION, REST, source_items, source_results


def wordless(pack: ConceptPack) -> Concept:
    """The concept without a single cue: as a source, words know nothing of it."""
    senses = [Sense(name, own.gloss, own.note, frozenset(), 0.0, {}, {}) for name, own in pack.senses.items()]
    return Concept(pack.concept, "p", tuple(pack.forms), "mention", 1.0, None, 0.0, 1.0, tuple(senses))


def led_astray(items: list[Item], kinds: dict[str, str]) -> Captured:
    """Each sense has a latent. At the mention a garden path's is that of the other sense; later all are right."""
    x = np.zeros((2, len(items), 8))
    for row, item in enumerate(items):
        label = item.labels.index(item.label)
        x[0, row, 1 - label if kinds.get(item.id) == "garden-path" else label] = 1
        x[1, row, label] = 1
    early, late = csr_array(x[0]), csr_array(x[1])
    dense = {MENTION: x[0], REST: x[1], LAST: x[1]}
    return Captured({MENTION: early, REST: late, LAST: late}, {k: v.astype(np.float32) for k, v in dense.items()})


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    packs = {pack.concept: pack for group in load_packs().values() for pack in group}
    sets = {"dev": planted_prompts("dev"), "test": planted_prompts("test")}
    named = {
        split: next(p.concept for p in own if p.kind == "garden-path" and len(packs[p.concept].senses) == 2)
        for split, own in sets.items()
    }
    prompts: list[tuple[Split, PlantedPrompt]] = [
        (split, p)  # type: ignore[misc]
        for split, own in sets.items()
        for p in own
        if p.concept == named[split]
    ]
    items = source_items([packs[name] for name in named.values()], prompts)
    concepts = {name: wordless(packs[name]) for name in named.values()}
    results = source_results(items, prompts, concepts, led_astray(items, {p.id: p.kind for _, p in prompts}))
    return {"set": "test", "model": "m", **results}


def row(found: dict[str, Any], source: str, kind: str) -> dict[str, Any]:
    return next(r for r in sources(found) if (r["reading"], r["source"], r["kind"]) == ("mention", source, kind))


def test_a_reading_of_the_whole_prompt_finds_what_the_mention_got_wrong(found: dict[str, Any]) -> None:
    garden = row(found, "rest", "garden-path")
    assert (garden["source_right"], garden["misread"], garden["flagged"], garden["precision"]) == (1, 1, 1, 1)
    assert row(found, "rest", "plain")["flagged"] == 0


def test_words_without_cues_are_sure_of_nothing(found: dict[str, Any]) -> None:
    assert row(found, "words", "garden-path")["flagged"] == 0
    assert row(found, "words", "garden-path")["source_right_where_sure"] is None


def test_fit_sentences_are_marked_where_the_mention_stands() -> None:
    pack = next(pack for group in load_packs().values() for pack in group)
    items = source_items([pack], [])
    assert {item.label for item in items} == set(pack.senses)
    for item in items:
        start, end = item.spots[MENTION]
        assert item.prompt[start:end].lower() in {form.lower() for form in pack.forms}
        assert item.spots[REST] == (start, len(item.prompt))
