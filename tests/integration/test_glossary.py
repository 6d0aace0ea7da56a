"""A deployer's glossary on the real small model: in this process, and in the worker of the real server."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from middleware import CatalogSource, Glossary, SAEAnnotator
from middleware.sources import InspectionRequest, ServerSource
from sae_runtime.detector import Inspector
from sae_runtime.serving import ModelServer

GLOSSARY = Glossary.from_dict({
    "churn": {
        "meaning": "customers who cancel their subscription",
        "otherwise": "stirring milk or cream until it turns into butter",
        "examples": [
            "Our churn rose to four percent in March.",
            "Which of our plans has the lowest churn?",
            "We lost revenue because of the churn among new subscribers.",
            "The support team calls customers to keep the churn down.",
        ],
        "counterexamples": [
            "My grandmother had a wooden churn for making butter.",
            "Pour the cream into the churn and turn the handle.",
            "The milk in the churn had gone sour by the evening.",
            "She washed the churn after the butter was done.",
        ],
    }
})  # fmt: skip
MEANT = [
    "How do we bring down the churn after the first invoice?",
    "The churn of yearly subscribers is low this quarter.",
]
OTHER = [
    "He filled the churn with fresh cream from the dairy.",
    "Butter from a churn tastes better than from a factory.",
]


def ask(text: str, glossary: Glossary | None = GLOSSARY) -> InspectionRequest:
    return InspectionRequest([{"role": "user", "content": text}], [0], glossary=glossary)


@pytest.mark.model
def test_a_term_is_read_in_sentences_that_it_was_not_compiled_from(inspector: Inspector) -> None:
    annotator = SAEAnnotator(source=CatalogSource(inspector), glossary=GLOSSARY, deadline=120, on_error="raise")
    annotator.prepare()
    readings = {text: annotator.annotate(text).reading for text in (*MEANT, *OTHER)}
    chances = {text: reading.mentions[0].reading["meant"] for text, reading in readings.items() if reading}
    assert min(chances[text] for text in MEANT) > max(chances[text] for text in OTHER)
    assert not any(readings[text].misreads for text in MEANT)  # type: ignore[union-attr]


@pytest.mark.model
def test_the_note_is_the_deployers(inspector: Inspector) -> None:
    annotator = SAEAnnotator(source=CatalogSource(inspector), glossary=GLOSSARY, deadline=120, on_error="raise")
    flagged = [result for text in OTHER if (result := annotator.annotate(text)).notes]
    for result in flagged:
        assert result.notes == ['"churn" means customers who cancel their subscription here.']
        assert result.reading is not None
        assert result.reading.misreads[0].evidence == ["glossary"]
    assert flagged


@pytest.mark.model
def test_other_prompts_are_read_as_without_a_glossary(inspector: Inspector) -> None:
    text = "We sat on the grassy bank of the river and watched the water flow past."
    with_terms, plain = (
        inspector.inspect([{"role": "user", "content": text}], glossary=glossary) for glossary in (GLOSSARY, None)
    )
    assert with_terms.mentions == plain.mentions


@pytest.mark.server
async def test_the_server_reads_terms_as_this_process_does(server: ModelServer, inspector: Inspector) -> None:
    source = ServerSource(server.url)
    try:
        outcomes: list[Any] = await source.ainspect_batch([ask(text) for text in (*MEANT, *OTHER)], deadline=120)
    finally:
        await source.aclose()
    for text, there in zip((*MEANT, *OTHER), outcomes, strict=True):
        here = inspector.inspect([{"role": "user", "content": text}], glossary=GLOSSARY)
        assert there.mentions[0].reading == pytest.approx(here.mentions[0].reading, abs=2e-3)


@pytest.mark.server
async def test_a_glossary_is_compiled_although_the_first_client_gives_up(server: ModelServer) -> None:
    terms = {"sprint": {"meaning": "two weeks of work", "otherwise": ["running fast", "a short race"]}}
    glossary = Glossary.from_dict(terms)
    source = ServerSource(server.url)
    try:
        first = asyncio.create_task(source.ainspect(ask("The sprint ends.", glossary), deadline=60))
        await asyncio.sleep(0.05)
        first.cancel()
        reading = await source.ainspect(ask("The sprint ends.", glossary), deadline=60)
    finally:
        await source.aclose()
    assert [mention.concept for mention in reading.mentions] == ["glossary:sprint"]


@pytest.mark.server
def test_the_server_refuses_a_glossary_without_contrast(server: ModelServer) -> None:
    import httpx

    term = {"term": "churn", "meaning": "customers who leave"}
    body = {"messages": [{"role": "user", "content": "churn"}], "glossary": {"terms": [term]}}
    response = httpx.post(f"{server.url}/v1/sae/inspect", json=body, timeout=30)
    assert response.status_code in (400, 422)
    assert "otherwise" in response.text
