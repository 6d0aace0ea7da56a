"""Which messages are read and which concepts may be flagged, and what one call may change about it."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.runnables import RunnableLambda

from middleware import Glossary, SAEAnnotator
from middleware.sources import ServerSource
from middleware.testing import FakeInspector
from sae_runtime.errors import InputError

Call = Callable[..., Any]

NOTES = {"bank": "River.", "spring": "Coil."}
TERMS = {"churn": {"meaning": "customers who leave", "otherwise": "stirring milk"}}


@pytest.fixture
def fake() -> FakeInspector:
    return FakeInspector(NOTES)


CHAT = [
    SystemMessage("About a bank."),
    HumanMessage("The bank."),
    AIMessage("Which bank?"),
    HumanMessage("The spring."),
]


@pytest.mark.parametrize(
    ("scope", "read"),
    [("last", [3]), ("all", [1, 3]), (lambda m: m.type in ("human", "ai"), [1, 2, 3]), (lambda m: m.type == "system", [0])],
    ids=["last", "all", "predicate", "system"],
)  # fmt: skip
def test_scope_decides_which_messages_are_read(fake: FakeInspector, call: Call, scope: Any, read: list[int]) -> None:
    call(SAEAnnotator(source=fake, read=scope), "invoke", CHAT)
    assert fake.requests[0].read == read
    assert len(fake.requests[0].messages) == 4  # the others are part of what the model sees


def test_nothing_chosen_is_a_bypass(fake: FakeInspector, call: Call) -> None:
    annotator = SAEAnnotator(source=fake, read=lambda message: False)
    assert call(annotator, "invoke", CHAT) == CHAT
    assert annotator.stats.bypassed == {"InputError": 1}
    assert fake.requests == []


@pytest.mark.parametrize(
    ("options", "notes"),
    [({"only": ["bank"]}, ["River."]), ({"without": ["bank"]}, ["Coil."]), ({"only": []}, []), ({}, ["River.", "Coil."])],
    ids=["only", "without", "none", "all"],
)  # fmt: skip
def test_concepts_can_be_allowed_and_denied(call: Call, options: dict[str, Any], notes: list[str]) -> None:
    annotator = SAEAnnotator(source=FakeInspector(NOTES), **options)
    assert call(annotator, "annotate", "bank and spring").notes == notes
    config = {"configurable": {f"sensecheck_{name}": value for name, value in options.items()}}
    assert call(SAEAnnotator(source=FakeInspector(NOTES)), "annotate", "bank and spring", config).notes == notes


def test_a_call_replaces_domain_and_glossary(fake: FakeInspector, call: Call) -> None:
    annotator = SAEAnnotator(source=fake, domain="rivers")
    call(annotator, "invoke", "x")
    call(annotator, "invoke", "x", {"configurable": {"sensecheck_domain": "finance", "sensecheck_glossary": TERMS}})
    call(annotator, "invoke", "x", {"configurable": {"thread_id": "7"}})
    assert [request.domain for request in fake.requests] == ["rivers", "finance", "rivers"]
    assert [request.glossary for request in fake.requests] == [None, Glossary.from_dict(TERMS), None]


def test_a_user_picks_senses(fake: FakeInspector, call: Call) -> None:
    call(SAEAnnotator(source=fake, picks={"bank": "river"}), "invoke", "x")
    call(SAEAnnotator(source=fake), "invoke", "x", {"configurable": {"sensecheck_picks": {"spring": "coil"}}})
    assert [request.picks for request in fake.requests] == [{"bank": "river"}, {"spring": "coil"}]


def test_a_call_chooses_a_tenants_source(call: Call) -> None:
    own, theirs = FakeInspector({"bank": "Own."}), FakeInspector({"bank": "Theirs."})
    annotator = SAEAnnotator(source=own, sources={"acme": theirs})
    assert call(annotator, "annotate", "bank").notes == ["Own."]
    assert call(annotator, "annotate", "bank", {"configurable": {"sensecheck_source": "acme"}}).notes == ["Theirs."]
    result = call(annotator, "annotate", "bank", {"configurable": {"sensecheck_source": "nobody"}})
    assert (result.notes, result.bypass) == ([], "InputError")


def test_a_batch_may_mix_sources_and_options(call: Call) -> None:
    own, theirs = FakeInspector(NOTES), FakeInspector({"bank": "Theirs."})
    annotator = SAEAnnotator(source=own, sources={"acme": theirs})
    configs = [{}, {"configurable": {"sensecheck_source": "acme"}}, {"configurable": {"sensecheck_without": ["bank"]}}]
    first, second, third = call(annotator, "batch", ["bank", "bank", "bank"], configs)
    assert "River." in first[0].content
    assert "Theirs." in second[0].content
    assert third[0].content == "bank"
    assert own.batches == [(2, None)]


@pytest.mark.parametrize(
    "wrong",
    [
        {"domain": 3},
        {"only": "bank"},
        {"without": [1]},
        {"only": 3},
        {"without": True},
        {"glossary": 7},
        {"source": 5},
        {"picks": ["bank"]},
        {"glossary": {"churn": "x"}},
    ],
    ids=str,
)
def test_wrong_settings_of_a_call_let_the_prompt_pass(fake: FakeInspector, call: Call, wrong: dict[str, Any]) -> None:
    config = {"configurable": {f"sensecheck_{name}": value for name, value in wrong.items()}}
    annotator = SAEAnnotator(source=fake)
    assert call(annotator, "invoke", "bank", config) == [HumanMessage("bank")]
    assert annotator.stats.bypassed == {"InputError": 1}
    with pytest.raises(InputError):
        call(SAEAnnotator(source=fake, on_error="raise"), "invoke", "bank", config)


def test_the_settings_of_a_call_reach_the_annotator_through_a_chain(fake: FakeInspector, call: Call) -> None:
    chain = RunnableLambda(lambda text: text) | SAEAnnotator(source=fake)
    call(chain, "invoke", "bank", {"configurable": {"sensecheck_domain": "finance"}})
    assert fake.requests[0].domain == "finance"
    assert {spec.id for spec in chain.config_specs} >= {"sensecheck_domain", "sensecheck_glossary", "sensecheck_source"}


def test_the_key_of_a_dict_is_an_option(fake: FakeInspector, call: Call) -> None:
    annotator = SAEAnnotator(source=fake, messages_key="chat")
    assert "River." in call(annotator, "invoke", {"chat": [("human", "bank")], "user": 7})[0].content
    with pytest.raises(InputError, match="'chat'"):
        call(annotator, "invoke", {"messages": [("human", "bank")]})


def test_observing_adds_nothing_and_tells_all(fake: FakeInspector, call: Call) -> None:
    annotator = SAEAnnotator(source=fake, observe=True)
    messages = [HumanMessage("bank")]
    result = call(annotator, "annotate", messages)
    assert all(a is b for a, b in zip(result.messages, messages, strict=True))
    assert result.notes == ["River."]
    assert annotator.stats.flagged == 1


def test_it_can_be_pickled_with_its_settings() -> None:
    annotator = SAEAnnotator(
        source=ServerSource("http://127.0.0.1:1", api_key="k"), domain="rivers", only=["bank"], glossary=TERMS_GLOSSARY
    )
    annotator.stats.inspected = 5
    copy = pickle.loads(pickle.dumps(annotator))  # noqa: S301 (our own bytes)
    assert copy.model_dump() == annotator.model_dump()
    assert isinstance(copy.source, ServerSource)
    assert copy.source.url == "http://127.0.0.1:1"
    assert copy.stats.inspected == 0


TERMS_GLOSSARY = Glossary.from_dict(TERMS)
