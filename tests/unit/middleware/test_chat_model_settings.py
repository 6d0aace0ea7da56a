"""What one call of an annotated chat model sets: scope, keywords and callbacks each reach what they are meant for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest
from langchain_core.messages import HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable, RunnableLambda
from scripted_models import FINANCE, NOTED, TEXT, Events, wrapped

from middleware import SAEAnnotator
from middleware.testing import FakeInspector
from sae_runtime.errors import EngineError

Call = Callable[..., Any]


@pytest.mark.parametrize("way", ["invoke", "batch"])
def test_the_settings_of_a_call_reach_the_reading(
    annotator: SAEAnnotator, fake: FakeInspector, call: Call, way: str
) -> None:
    model, _ = wrapped(annotator)
    settings = {"sensecheck_domain": "finance", "sensecheck_without": ["spring"], "sensecheck_only": ["bank"]}
    call(model, way, [TEXT] if way == "batch" else TEXT, config={"configurable": {**settings, "thread_id": "7"}})
    call(model, way, [TEXT] if way == "batch" else TEXT)
    assert [request.domain for request in fake.requests] == ["finance", None]
    assert [request.only for request in fake.requests] == [frozenset({"bank"}), None]
    assert [request.without for request in fake.requests] == [frozenset({"spring"}), frozenset()]


def test_each_prompt_of_a_batch_has_its_own_settings(annotator: SAEAnnotator, fake: FakeInspector, call: Call) -> None:
    model, _ = wrapped(annotator)
    configs = [{"configurable": {"sensecheck_domain": domain}} for domain in ("finance", "rivers")]
    call(model, "batch", ["0", "1"], config=configs)
    found = {request.messages[0]["content"]: request.domain for request in fake.requests}
    assert found == {"0": "finance", "1": "rivers"}


def test_a_glossary_and_a_tenants_source_come_with_the_call(call: Call) -> None:
    own, theirs = FakeInspector({"bank": "Own."}), FakeInspector({"bank": "Theirs."})
    model, inner = wrapped(SAEAnnotator(source=own, sources={"acme": theirs}))
    terms = {"churn": {"meaning": "customers who leave", "otherwise": "stirring milk"}}
    call(model, "invoke", TEXT, config={"configurable": {"sensecheck_source": "acme", "sensecheck_glossary": terms}})
    assert "Theirs." in str(inner.sent[0][0].content)
    assert theirs.requests[0].glossary.terms[0].term == "churn"
    assert own.requests == []


def chain_of(model: Runnable[Any, Any]) -> Runnable[Any, Any]:
    prompt = ChatPromptTemplate.from_messages([("human", "I sat on the {place}.")])
    return prompt | model | StrOutputParser()


def test_the_settings_of_a_chain_reach_the_reading(annotator: SAEAnnotator, call: Call, pieces: Call) -> None:
    model, inner = wrapped(annotator)
    assert call(chain_of(model), "invoke", {"place": "bank"}, config=FINANCE) == "Wet feet."
    assert pieces(chain_of(model), {"place": "bank"}, config=FINANCE) == ["Wet", "feet.", ""]
    assert call(chain_of(model), "batch", [{"place": "bank"}], config=FINANCE) == ["Wet feet."]
    assert [request.domain for request in annotator.source.requests] == ["finance"] * 3
    assert inner.sent == [[HumanMessage(NOTED)]] * 3
    assert inner.options == [{}] * 3


def test_settings_can_be_bound_with_config(annotator: SAEAnnotator, fake: FakeInspector, pieces: Call) -> None:
    model, _ = wrapped(annotator)
    pieces(model.with_config(FINANCE), TEXT)
    assert fake.requests[0].domain == "finance"


def test_settings_reach_a_model_called_inside_a_function(
    annotator: SAEAnnotator, fake: FakeInspector, call: Call
) -> None:
    model, _ = wrapped(annotator)

    async def ask(text: str) -> Any:
        return await model.ainvoke(text)

    call(RunnableLambda(model.invoke, ask), "invoke", TEXT, config=FINANCE)
    assert fake.requests[0].domain == "finance"


def test_stop_words_and_keywords_reach_the_model_and_ours_never_does(
    annotator: SAEAnnotator, call: Call, pieces: Call
) -> None:
    model, inner = wrapped(annotator)
    call(model, "invoke", TEXT, config=FINANCE, stop=["."], temperature=0.5)
    pieces(model, TEXT, config=FINANCE, stop=["."], temperature=0.5)
    call(model, "batch", [TEXT], config=FINANCE, stop=["."], temperature=0.5)
    assert inner.stops == [["."]] * 3
    assert inner.options == [{"temperature": 0.5}] * 3
    assert len(inner.asides) >= 6  # parameters for traces, and whether to stream
    assert not [aside for aside in inner.asides if "sensecheck" in aside]


def test_bound_keywords_reach_the_model(annotator: SAEAnnotator, call: Call) -> None:
    model, inner = wrapped(annotator)
    call(model.bind(stop=["x"], seed=7), "invoke", TEXT)
    assert (inner.stops, inner.options) == ([["x"]], [{"seed": 7}])


def test_traces_do_not_show_the_private_keyword(annotator: SAEAnnotator, call: Call, pieces: Call) -> None:
    model, _ = wrapped(annotator)
    events = Events()
    call(model, "invoke", TEXT, config={**FINANCE, "callbacks": [events]}, seed=7)
    pieces(model, TEXT, config={**FINANCE, "callbacks": [events]}, seed=7)
    assert [start["invocation_params"] for start in events.starts] == [{"kind": "whole", "stop": None, "seed": 7}] * 2
    assert [start["options"] for start in events.starts] == [{"stop": None}, {"stop": None, "seed": 7}]
    assert events.shown == [[HumanMessage(TEXT)]] * 2  # the prompt of the caller; notes are in the event


def test_the_event_of_a_reading_belongs_to_the_run_of_the_model(
    annotator: SAEAnnotator, call: Call, pieces: Call
) -> None:
    model, _ = wrapped(annotator)
    events = Events()
    config = {"callbacks": [events], "tags": ["mine"]}
    call(model, "invoke", TEXT, config=config)
    pieces(model, TEXT, config=config)
    call(model, "batch", [TEXT], config=config)
    assert len(set(events.models)) == 3
    assert events.custom == [("sensecheck.reading", run_id) for run_id in events.models]
    assert events.tags == [["mine"]] * 3
    assert [data["flags"][0]["note"] for data in events.data] == ["River."] * 3
    assert [data["annotated"] for data in events.data] == [True] * 3


def test_the_event_reaches_callbacks_through_a_chain(annotator: SAEAnnotator, call: Call, pieces: Call) -> None:
    model, _ = wrapped(annotator)
    events = Events()
    call(chain_of(model), "invoke", {"place": "bank"}, config={"callbacks": [events]})
    pieces(chain_of(model), {"place": "bank"}, config={"callbacks": [events]})
    assert len(events.models) == 2
    assert events.custom == [("sensecheck.reading", run_id) for run_id in events.models]


def test_the_event_tells_of_a_bypass(call: Call, pieces: Call) -> None:
    model, _ = wrapped(SAEAnnotator(source=FakeInspector(then=EngineError("broken"))))
    events = Events()
    call(model, "invoke", TEXT, config={"callbacks": [events]})
    pieces(model, TEXT, config={"callbacks": [events]})
    assert [data["bypass"] for data in events.data] == ["EngineError"] * 2


def test_a_run_keeps_the_number_that_it_is_given(annotator: SAEAnnotator, call: Call, pieces: Call) -> None:
    model, _ = wrapped(annotator)
    events = Events()
    numbers = [uuid4(), uuid4()]
    call(model, "invoke", TEXT, config={"callbacks": [events], "run_id": numbers[0]})
    pieces(model, TEXT, config={"callbacks": [events], "run_id": numbers[1]})
    assert events.models == numbers
    assert [run_id for _, run_id in events.custom] == numbers
