"""What an annotated chat model is sent and answers: at once, in pieces, with tools, as structured output. All is scripted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models import BaseChatModel, FakeListChatModel, GenericFakeChatModel
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.outputs import ChatResult
from langchain_core.runnables import Runnable, RunnableBinding
from langchain_core.tools import tool
from langchain_core.tracers._streaming import _V2StreamingCallbackHandler
from langchain_core.utils.function_calling import convert_to_openai_tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, Field
from scripted_models import FINANCE, NOTED, TEXT, AsyncPiecewise, Events, Piecewise, Whole, wrapped

from middleware import SAEAnnotator
from middleware.chat_model import AnnotatedChatModel
from middleware.testing import FakeInspector
from sae_runtime.errors import EngineError

Call = Callable[..., Any]

v3_is_beta = pytest.mark.filterwarnings("ignore::langchain_core._api.beta_decorator.LangChainBetaWarning")


class Invoice(BaseModel):
    """An invoice."""

    total: int


@tool
def lookup(place: str) -> str:
    """Look a place up."""
    return f"{place} is wet."


INVOICE = AIMessage("", tool_calls=[{"name": "Invoice", "args": {"total": 3}, "id": "1"}])


# What the model is sent, what comes back


@pytest.mark.parametrize("value", [TEXT, [("human", TEXT)], [HumanMessage(TEXT)]], ids=["str", "tuples", "messages"])
def test_invoke_sends_the_note_and_gives_the_answer(annotator: SAEAnnotator, call: Call, value: Any) -> None:
    model, inner = wrapped(annotator)
    answer = call(model, "invoke", value)
    assert answer.content == "Wet feet."
    assert answer.response_metadata == {"server": "s1"}
    assert inner.sent == [[HumanMessage(NOTED)]]


def test_nothing_flagged_sends_the_messages_as_they_are(annotator: SAEAnnotator, call: Call) -> None:
    model, inner = wrapped(annotator)
    messages = [SystemMessage("Be brief."), HumanMessage("The shore.")]
    call(model, "invoke", messages)
    assert all(a is b for a, b in zip(inner.sent[0], messages, strict=True))


def test_the_input_is_not_changed(annotator: SAEAnnotator, call: Call) -> None:
    model, _ = wrapped(annotator)
    messages = [HumanMessage(TEXT)]
    call(model, "invoke", messages)
    assert messages == [HumanMessage(TEXT)]


def test_batch_answers_each_prompt_in_order(annotator: SAEAnnotator, call: Call) -> None:
    model, inner = wrapped(annotator)
    prompts = [f"{number}: the bank" for number in range(6)]
    answers = call(model, "batch", prompts, config={"max_concurrency": 2})
    assert [answer.content for answer in answers] == ["Wet feet."] * 6
    assert sorted(str(messages[0].content).split("\n")[0] for messages in inner.sent) == prompts
    assert all("River." in str(messages[0].content) for messages in inner.sent)


def test_the_fakes_of_langchain_work_inside(annotator: SAEAnnotator, call: Call, pieces: Call) -> None:
    listed = AnnotatedChatModel(model=FakeListChatModel(responses=["One.", "Two."]), annotator=annotator)
    assert [call(listed, "invoke", TEXT).content for _ in range(2)] == ["One.", "Two."]
    generic = AnnotatedChatModel(model=GenericFakeChatModel(messages=iter([AIMessage("a b c")])), annotator=annotator)
    assert [chunk.content for chunk in pieces(generic, TEXT)] == ["a", " ", "b", " ", "c"]


def test_the_answers_of_several_prompts_are_combined_as_the_model_does(annotator: SAEAnnotator) -> None:
    model, _ = wrapped(annotator)
    assert model.generate([[HumanMessage(TEXT)], [HumanMessage("x")]]).llm_output == {"servers": ["s1", "s1"]}


def test_a_failed_reading_leaves_the_answer(call: Call, pieces: Call) -> None:
    annotator = SAEAnnotator(source=FakeInspector(then=EngineError("broken")))
    model, inner = wrapped(annotator)
    assert call(model, "invoke", TEXT).content == "Wet feet."
    assert [chunk.content for chunk in pieces(model, TEXT)] == ["Wet", "feet.", ""]
    assert inner.sent == [[HumanMessage(TEXT)]] * 2
    assert annotator.stats.bypassed == {"EngineError": 2}


def test_a_failed_reading_is_raised_when_that_is_wanted(call: Call, pieces: Call) -> None:
    error = EngineError("broken")
    model, inner = wrapped(SAEAnnotator(source=FakeInspector(then=error), on_error="raise"))
    events = Events()
    with pytest.raises(EngineError):
        call(model, "invoke", TEXT, config={"callbacks": [events]})
    with pytest.raises(EngineError):
        pieces(model, TEXT, config={"callbacks": [events]})
    assert events.errors == [error, error]
    assert inner.sent == []


def test_errors_of_the_model_are_its_own(annotator: SAEAnnotator, call: Call) -> None:
    class Broken(Whole):
        def _generate(self, *args: Any, **kwargs: Any) -> ChatResult:
            raise RuntimeError("no model")

    with pytest.raises(RuntimeError, match="no model"):
        call(AnnotatedChatModel(model=Broken(), annotator=annotator), "invoke", TEXT)
    assert annotator.stats.bypassed == {}


# Streaming


@pytest.mark.parametrize("kind", [Piecewise, AsyncPiecewise])
def test_every_chunk_is_there_before_the_next_is_made(pieces: Call, kind: type[Piecewise]) -> None:
    inner = kind(answer=AIMessage("a b c"))

    class Logging(FakeInspector):
        def inspect(self, *args: Any, **kwargs: Any) -> Any:
            inner.log.append("reads")
            return super().inspect(*args, **kwargs)

    model = AnnotatedChatModel(model=inner, annotator=SAEAnnotator(source=Logging({"bank": "River."})))
    pieces(model, TEXT, each=lambda chunk: inner.log.append(f"takes {chunk.content}"))
    assert inner.log == ["reads", "gives a", "takes a", "gives b", "takes b", "gives c", "takes c", "takes "]
    assert inner.sent == [[HumanMessage(NOTED)]]


def test_chunks_add_up_to_the_answer(annotator: SAEAnnotator, pieces: Call) -> None:
    model, _ = wrapped(annotator)
    first, *others = pieces(model, TEXT)
    assert sum(others, first).content == "Wetfeet."
    assert others[-1].chunk_position == "last"


def test_a_stream_left_early_asks_for_no_more(annotator: SAEAnnotator) -> None:
    model, inner = wrapped(annotator, answer=AIMessage("a b c"))
    stream = model.stream(TEXT)
    assert next(stream).content == "a"
    stream.close()
    assert inner.log == ["gives a"]


def test_a_model_that_cannot_stream_gives_one_piece(annotator: SAEAnnotator, pieces: Call) -> None:
    inner = Whole()
    model = AnnotatedChatModel(model=inner, annotator=annotator)
    events = Events()
    assert [chunk.content for chunk in pieces(model, TEXT, config={**FINANCE, "callbacks": [events]})] == ["Wet feet."]
    assert inner.sent == [[HumanMessage(NOTED)]]
    assert annotator.source.requests[0].domain == "finance"
    assert events.custom == [("sensecheck.reading", events.models[0])]


@pytest.mark.parametrize("kind", [Whole, AsyncPiecewise])
def test_a_listener_to_pieces_does_not_make_a_model_stream_that_cannot(
    annotator: SAEAnnotator, call: Call, kind: type[Whole]
) -> None:
    class Listener(BaseCallbackHandler, _V2StreamingCallbackHandler):
        def __init__(self) -> None:
            self.heard: list[Any] = []

        def on_stream_event(self, event: Any, **kwargs: Any) -> None:
            self.heard.append(event["event"])

    inner, listener = kind(), Listener()
    answer = call(
        AnnotatedChatModel(model=inner, annotator=annotator), "invoke", TEXT, config={"callbacks": [listener]}
    )
    assert inner.sent == [[HumanMessage(NOTED)]]
    assert (answer.text, bool(listener.heard)) == (("Wet feet.", False) if kind is Whole else ("Wetfeet.", True))


def test_a_model_whose_streaming_is_switched_off_gives_one_piece(annotator: SAEAnnotator, pieces: Call) -> None:
    model, inner = wrapped(annotator, disable_streaming=True)
    assert [chunk.content for chunk in pieces(model, TEXT)] == ["Wet feet."]
    assert inner.log == []


async def test_astream_events_tells_of_the_reading_and_each_piece(annotator: SAEAnnotator) -> None:
    model, _ = wrapped(annotator)
    seen = [event async for event in model.astream_events(TEXT, config={"tags": ["mine"]}, version="v2")]
    kinds = [event["event"] for event in seen]
    assert kinds == ["on_chat_model_start", "on_custom_event", *["on_chat_model_stream"] * 3, "on_chat_model_end"]
    assert len({event["run_id"] for event in seen}) == 1
    assert seen[1]["name"] == "sensecheck.reading"
    assert seen[1]["tags"] == ["mine"]


@v3_is_beta
def test_the_newest_event_stream_is_annotated_too(annotator: SAEAnnotator, fake: FakeInspector) -> None:
    model, inner = wrapped(annotator)
    stream = model.stream_events(TEXT, FINANCE, version="v3")
    assert stream.output.text == "Wetfeet."
    assert inner.sent == [[HumanMessage(NOTED)]]
    assert inner.options == [{}]
    assert fake.requests[0].domain == "finance"


@v3_is_beta
async def test_the_newest_event_stream_is_annotated_asynchronously(
    annotator: SAEAnnotator, fake: FakeInspector
) -> None:
    model, inner = wrapped(annotator)
    stream = await model.astream_events(TEXT, FINANCE, version="v3")
    assert (await stream.output).text == "Wetfeet."
    assert inner.sent == [[HumanMessage(NOTED)]]
    assert fake.requests[0].domain == "finance"


# Tools and structured output


def test_bound_tools_reach_the_model_with_the_note(annotator: SAEAnnotator, call: Call, pieces: Call) -> None:
    model, inner = wrapped(annotator)
    bound = model.bind_tools([lookup], tool_choice="any")
    assert isinstance(bound, RunnableBinding)
    assert bound.bound is model
    call(bound, "invoke", TEXT, config=FINANCE)
    pieces(bound, TEXT, config=FINANCE)
    expected = {"tools": [convert_to_openai_tool(lookup)], "tool_choice": "any"}
    assert inner.options == [expected, expected]
    assert inner.sent == [[HumanMessage(NOTED)]] * 2
    assert [request.domain for request in annotator.source.requests] == ["finance", "finance"]


@pytest.mark.parametrize("include_raw", [False, True])
def test_structured_output_comes_from_the_annotated_prompt(
    annotator: SAEAnnotator, call: Call, include_raw: bool
) -> None:
    model, inner = wrapped(annotator, answer=INVOICE)
    result = call(model.with_structured_output(Invoice, include_raw=include_raw), "invoke", TEXT, config=FINANCE)
    if include_raw:
        assert result["raw"].tool_calls == INVOICE.tool_calls
        assert (result["parsed"], result["parsing_error"]) == (Invoice(total=3), None)
    else:
        assert result == Invoice(total=3)
    assert inner.sent == [[HumanMessage(NOTED)]]
    assert annotator.source.requests[0].domain == "finance"


def test_a_raw_answer_that_does_not_parse_is_given_with_its_error(annotator: SAEAnnotator, call: Call) -> None:
    wrong = AIMessage("", tool_calls=[{"name": "Invoice", "args": {"total": "many"}, "id": "1"}])
    model, inner = wrapped(annotator, answer=wrong)
    result = call(model.with_structured_output(Invoice, include_raw=True), "invoke", TEXT)
    assert result["parsed"] is None
    assert "total" in str(result["parsing_error"])
    assert inner.sent == [[HumanMessage(NOTED)]]


@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
@pytest.mark.parametrize("include_raw", [False, True])
def test_structured_output_of_a_real_class_holds_the_annotated_model(
    annotator: SAEAnnotator, method: str, include_raw: bool
) -> None:
    inner = ChatOpenAI(model="gpt-4.1", api_key="none")
    model = AnnotatedChatModel(model=inner, annotator=annotator)
    before = repr(inner)
    models = list(models_in(model.with_structured_output(Invoice, method=method, include_raw=include_raw)))
    assert len(models) == 1
    assert models[0] is model
    assert model.model is inner
    assert repr(inner) == before


def models_in(runnable: Runnable[Any, Any]) -> Iterator[Runnable[Any, Any]]:
    """The chat models in ``runnable``."""
    if isinstance(runnable, BaseChatModel):
        yield runnable
    parts = [
        getattr(runnable, "bound", None),
        *getattr(runnable, "steps", []),
        *getattr(runnable, "steps__", {}).values(),
    ]
    for part in parts:
        if part is not None:
            yield from models_in(part)


def test_the_wrapped_model_is_never_touched(annotator: SAEAnnotator, call: Call) -> None:
    model, inner = wrapped(annotator, answer=INVOICE)
    model.bind_tools([lookup])
    model.with_structured_output(Invoice, include_raw=True)
    call(inner, "invoke", TEXT)
    assert inner.sent == [[HumanMessage(TEXT)]]
    assert inner.options == [{}]
    assert annotator.source.requests == []


def test_a_model_that_binds_tools_to_a_copy_of_itself_is_annotated(annotator: SAEAnnotator, call: Call) -> None:
    class Copying(Whole):
        tools: list[Any] = Field(default_factory=list)

        def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Runnable[Any, Any]:
            return self.model_copy(update={"tools": list(tools)})

    inner = Copying()
    bound = AnnotatedChatModel(model=inner, annotator=annotator).bind_tools([lookup])
    assert call(bound, "invoke", TEXT).content == "Wet feet."
    assert inner.sent == [[HumanMessage(NOTED)]]  # the copy shares the list
    assert (bound.model.tools, inner.tools) == ([lookup], [])
