"""Compiled glossaries: read beside the catalog, compiled once for all who ask, and kept."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from small_glossaries import CHURN, LEAD

from sae_runtime.catalog.view import CatalogView, Feature
from sae_runtime.detector import Detector, Plan
from sae_runtime.engines.chat import ChatEncoder
from sae_runtime.engines.features import PromptFeatures
from sae_runtime.errors import EngineError
from sae_runtime.glossary import Glossary
from sae_runtime.glossary.cache import _KEPT, GlossaryCache
from sae_runtime.glossary.compile import MEANT, OTHER, plans, sentences, with_glossary
from sae_runtime.models import ModelFingerprint
from sae_runtime.serving.service import ReadingService

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
