"""The annotated chat model: a chat model in every respect, whose prompts are read first. Readings and answers are scripted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any
from uuid import UUID, uuid4

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models import BaseChatModel, FakeListChatModel, GenericFakeChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage, SystemMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.rate_limiters import BaseRateLimiter
from langchain_core.runnables import Runnable, RunnableBinding, RunnableLambda
from langchain_core.tools import tool
from langchain_core.tracers._streaming import _V2StreamingCallbackHandler
from langchain_core.utils.function_calling import convert_to_openai_tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, Field

from middleware import SAEAnnotator
from middleware.chat_model import AnnotatedChatModel
from middleware.testing import FakeInspector
from sae_runtime.errors import EngineError

Call = Callable[..., Any]

TEXT = "I sat on the bank."
NOTED = f"{TEXT}\n\n[Note on the wording above: River.]"
FINANCE = {"configurable": {"sensecheck_domain": "finance"}}

v3_is_beta = pytest.mark.filterwarnings("ignore::langchain_core._api.beta_decorator.LangChainBetaWarning")


class Invoice(BaseModel):
    """An invoice."""

    total: int


@tool
def lookup(place: str) -> str:
    """Look a place up."""
    return f"{place} is wet."


INVOICE = AIMessage("", tool_calls=[{"name": "Invoice", "args": {"total": 3}, "id": "1"}])


class Whole(BaseChatModel):
    """Gives its answer at once, and keeps what it is asked."""

    answer: AIMessage = AIMessage("Wet feet.")
    sent: list[list[BaseMessage]] = Field(default_factory=list)
    stops: list[Any] = Field(default_factory=list)
    options: list[dict[str, Any]] = Field(default_factory=list)
    asides: list[dict[str, Any]] = Field(default_factory=list)
    log: list[str] = Field(default_factory=list)

    @property
    def _llm_type(self) -> str:
        return "whole"

    def _keep(self, messages: list[BaseMessage], stop: Any, options: dict[str, Any]) -> None:
        self.sent.append(messages)
        self.stops.append(stop)
        self.options.append(options)

    def _generate(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        self._keep(messages, stop, kwargs)
        return ChatResult(generations=[ChatGeneration(message=self.answer)], llm_output={"server": "s1"})

    def _should_stream(self, **kwargs: Any) -> bool:
        self.asides.append(kwargs)
        return super()._should_stream(**kwargs)

    def _get_ls_params(self, stop: Any = None, **kwargs: Any) -> Any:
        self.asides.append(kwargs)
        return {"ls_provider": "scripts", "ls_model_name": "whole-1", "ls_model_type": "chat"}

    def _get_invocation_params(self, stop: Any = None, **kwargs: Any) -> dict[str, Any]:
        self.asides.append(kwargs)
        return {"kind": "whole", "stop": stop, **kwargs}

    def _combine_llm_outputs(self, _llm_outputs: list[Any], /) -> dict[str, Any]:
        return {"servers": [output["server"] for output in _llm_outputs if output]}

    def get_token_ids(self, text: str) -> list[int]:
        return [len(word) for word in text.split()]

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Runnable[Any, Any]:
        return self.bind(tools=[convert_to_openai_tool(one) for one in tools], **kwargs)


class Piecewise(Whole):
    """Gives its answer word by word, synchronously."""

    def _stream(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> Iterator[ChatGenerationChunk]:
        self._keep(messages, stop, kwargs)
        for word in str(self.answer.content).split(" "):
            self.log.append(f"gives {word}")
            yield ChatGenerationChunk(message=AIMessageChunk(word))


class AsyncPiecewise(Piecewise):
    """Gives its answer word by word, also asynchronously."""

    async def _astream(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> AsyncIterator[ChatGenerationChunk]:
        for chunk in self._stream(messages, stop, run_manager, **kwargs):
            await asyncio.sleep(0)
            yield chunk


class Events(BaseCallbackHandler):
    """Keeps the ids and settings of model runs, and all custom events."""

    def __init__(self) -> None:
        self.models: list[UUID] = []
        self.starts: list[dict[str, Any]] = []
        self.errors: list[BaseException] = []
        self.custom: list[tuple[str, UUID]] = []
        self.data: list[dict[str, Any]] = []
        self.tags: list[list[str]] = []
        self.shown: list[list[BaseMessage]] = []

    def on_chat_model_start(self, serialized: Any, messages: Any, *, run_id: UUID, **kwargs: Any) -> None:
        self.models.append(run_id)
        self.starts.append(kwargs)
        self.shown.extend(messages)

    def on_llm_error(self, error: BaseException, **kwargs: Any) -> None:
        self.errors.append(error)

    def on_custom_event(self, name: str, data: Any, *, run_id: UUID, tags: Any = None, **kwargs: Any) -> None:
        self.custom.append((name, run_id))
        self.data.append(data)
        self.tags.append(tags)


@pytest.fixture
def fake() -> FakeInspector:
    return FakeInspector({"bank": "River."})


@pytest.fixture
def annotator(fake: FakeInspector) -> SAEAnnotator:
    return SAEAnnotator(source=fake)


@pytest.fixture(params=["sync", "async"])
def pieces(request: pytest.FixtureRequest) -> Call:
    """``pieces(target, value, ...)``: all chunks of ``target.stream(...)``, then of ``target.astream(...)``.

    ``each`` is called with every chunk as soon as it is there.
    """

    def run(target: Any, *args: Any, each: Callable[[Any], None] = lambda chunk: None, **options: Any) -> list[Any]:
        chunks = []

        def take(chunk: Any) -> None:
            each(chunk)
            chunks.append(chunk)

        async def gather() -> None:
            async for chunk in target.astream(*args, **options):
                take(chunk)

        if request.param == "async":
            asyncio.run(gather())
        else:
            for chunk in target.stream(*args, **options):
                take(chunk)
        return chunks

    return run


def wrapped(annotator: SAEAnnotator, **options: Any) -> tuple[AnnotatedChatModel, AsyncPiecewise]:
    inner = AsyncPiecewise(**options)
    return AnnotatedChatModel(model=inner, annotator=annotator), inner


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


# Settings of one call, callbacks, keywords


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


# What LangChain looks up at the model itself


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
