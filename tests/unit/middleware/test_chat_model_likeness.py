"""What LangChain looks up at the annotated chat model itself: it is as with the model inside, and cached answers do not mix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from langchain_core.caches import InMemoryCache
from langchain_core.messages import HumanMessage
from langchain_core.rate_limiters import BaseRateLimiter
from langchain_openai import ChatOpenAI
from scripted_models import FINANCE, NOTED, TEXT, Events, Whole, wrapped

from middleware import SAEAnnotator
from middleware.chat_model import AnnotatedChatModel

Call = Callable[..., Any]


def test_callbacks_and_tags_of_the_wrapped_model_hold(annotator: SAEAnnotator, call: Call, pieces: Call) -> None:
    events = Events()
    model, _ = wrapped(annotator, callbacks=[events], tags=["inner"])
    call(model, "invoke", TEXT)
    pieces(model, TEXT)
    assert len(events.models) == 2
    assert events.custom == [("sensecheck.reading", run_id) for run_id in events.models]
    assert [start["tags"] for start in events.starts] == [["inner"]] * 2


def test_what_is_given_to_the_outer_model_comes_first(annotator: SAEAnnotator) -> None:
    model = AnnotatedChatModel(model=Whole(tags=["inner"], name="inner"), annotator=annotator, tags=["outer"])
    assert (model.tags, model.name) == (["outer"], "inner")


def test_the_profile_is_that_of_the_wrapped_model(annotator: SAEAnnotator) -> None:
    model, _ = wrapped(annotator, profile={"max_input_tokens": 2048})
    assert model.profile == {"max_input_tokens": 2048}


def test_the_rate_limiter_of_the_wrapped_model_is_asked_once_per_call(
    annotator: SAEAnnotator, call: Call, pieces: Call
) -> None:
    asked = []

    class Limiter(BaseRateLimiter):
        def acquire(self, *, blocking: bool = True) -> bool:
            asked.append(blocking)
            return True

        async def aacquire(self, *, blocking: bool = True) -> bool:
            return self.acquire(blocking=blocking)

    model, _ = wrapped(annotator, rate_limiter=Limiter())
    call(model, "invoke", TEXT)
    pieces(model, TEXT)
    assert asked == [True, True]


def test_the_output_version_of_the_wrapped_model_holds(annotator: SAEAnnotator, call: Call, pieces: Call) -> None:
    model, inner = wrapped(annotator, output_version="v1")
    assert call(model, "invoke", TEXT).content == call(inner, "invoke", TEXT).content == [
        {"type": "text", "text": "Wet feet."}
    ]  # fmt: skip
    assert [chunk.content for chunk in pieces(model, TEXT)] == [chunk.content for chunk in pieces(inner, TEXT)]


def test_answers_are_cached_apart_from_those_without_notes(annotator: SAEAnnotator, call: Call) -> None:
    model, inner = wrapped(annotator, cache=InMemoryCache())
    other = AnnotatedChatModel(model=inner, annotator=SAEAnnotator(source=annotator.source, domain="rivers"))
    for one in (inner, model, other):
        call(one, "invoke", TEXT)
        call(one, "invoke", TEXT)
    call(model, "invoke", TEXT, config=FINANCE)
    call(model, "invoke", TEXT, config=FINANCE)
    assert inner.sent == [[HumanMessage(TEXT)], *[[HumanMessage(NOTED)]] * 3]


def test_tokens_are_counted_as_the_wrapped_model_does(annotator: SAEAnnotator) -> None:
    model, inner = wrapped(annotator)
    assert model.get_token_ids(TEXT) == [1, 3, 2, 3, 5]
    assert model.get_num_tokens(TEXT) == 5
    messages = [HumanMessage(TEXT)]
    assert model.get_num_tokens_from_messages(messages) == inner.get_num_tokens_from_messages(messages) > 5
    assert annotator.source.requests == []


def test_traces_name_the_wrapped_model(annotator: SAEAnnotator, call: Call, pieces: Call) -> None:
    model, inner = wrapped(annotator)
    assert model._get_ls_params(stop=["x"]) == inner._get_ls_params(stop=["x"])
    events = Events()
    call(model, "invoke", TEXT, config={"callbacks": [events]})
    pieces(model, TEXT, config={"callbacks": [events]})
    assert [start["metadata"]["ls_provider"] for start in events.starts] == ["scripts"] * 2
    assert [start["metadata"]["ls_model_name"] for start in events.starts] == ["whole-1"] * 2


def test_the_parameters_of_a_real_class_are_its_own(annotator: SAEAnnotator) -> None:
    inner = ChatOpenAI(model="gpt-4.1", temperature=0.5, max_tokens=7, api_key="none")
    model = AnnotatedChatModel(model=inner, annotator=annotator)
    assert model._get_ls_params() == inner._get_ls_params()
    assert model._get_ls_params(model="other")["ls_model_name"] == "other"
    assert model._get_invocation_params(stop=["x"], seed=7) == inner._get_invocation_params(stop=["x"], seed=7)
    assert model.model_name == "gpt-4.1"


def test_a_model_without_a_name_goes_by_its_type(annotator: SAEAnnotator) -> None:
    model, _ = wrapped(annotator)
    assert model.model_name == "whole"
    assert model._llm_type == "sensecheck-whole"


def test_repr_shows_both_parts_and_no_secrets() -> None:
    inner = ChatOpenAI(model="gpt-4.1", api_key="sk-secret-1")
    annotator = SAEAnnotator.from_url("http://127.0.0.1:9", api_key="sk-secret-2", domain="rivers")
    model = AnnotatedChatModel(model=inner, annotator=annotator)
    shown = repr(model)
    assert shown == f"AnnotatedChatModel(model={inner!r}, annotator={annotator!r})"
    assert "gpt-4.1" in shown
    assert "sk-secret" not in shown + str(model) + str(model.asdict())
