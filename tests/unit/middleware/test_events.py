"""What a reading tells the world: the event, traces, metrics; and that it does not hold up the model's tokens."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from langchain_core.callbacks import AsyncCallbackHandler, BaseCallbackHandler
from langchain_core.language_models import BaseChatModel, FakeListChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda
from langchain_core.tracers import Run
from langchain_core.tracers.run_collector import RunCollectorCallbackHandler

from middleware import SAEAnnotator
from middleware.events import READING_EVENT, ReadingEvent
from middleware.metrics import METRICS
from middleware.testing import FakeInspector
from sae_runtime.errors import EngineError, InputError, InspectionTimeout

Call = Callable[..., Any]

RIVER = '"bank" is the edge of a river here.'
UNNOTED = "xylophone"  # a word of the prompt that nobody misreads
TEXT = f"I sat on the bank with my {UNNOTED}."
FLAG = {
    "concept": "bank", "text": "bank", "message": 0, "start": 13, "end": 17, "read_as": "usual", "intended": "other",
    "p_read_as": 0.9, "p_intended": 0.95, "note": RIVER,
}  # fmt: skip
READ: ReadingEvent = {"flags": [FLAG], "mentions": 1, "bypass": None, "annotated": True, "milliseconds": 1.0}
BYPASSED: ReadingEvent = {"flags": [], "mentions": 0, "bypass": "", "annotated": False, "milliseconds": None}


class Listener(BaseCallbackHandler):
    """Keeps events with the run that they belong to, and the runs by number."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Any]] = []
        self.belongs: list[dict[str, Any]] = []
        self.runs: dict[Any, dict[str, Any]] = {}

    def on_custom_event(self, name: str, data: Any, **belongs: Any) -> None:
        self.events.append((name, data))
        self.belongs.append(belongs)

    def on_chain_start(self, serialized: Any, inputs: Any, *, run_id: Any, **about: Any) -> None:
        self.runs[run_id] = about


class AsyncListener(AsyncCallbackHandler):
    """Like :class:`Listener`, with coroutines."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Any]] = []

    async def on_custom_event(self, name: str, data: Any, **belongs: Any) -> None:
        self.events.append((name, data))


@pytest.fixture
def fake() -> FakeInspector:
    return FakeInspector({"bank": RIVER})


@pytest.fixture
def listener() -> Listener:
    return Listener()


def test_the_payload_is_as_documented(annotator: SAEAnnotator, listener: Listener, call: Call) -> None:
    call(annotator, "invoke", TEXT, config={"callbacks": [listener]})
    assert listener.events == [(READING_EVENT, READ)]
    assert READING_EVENT == "sensecheck.reading"
    ((_, data),) = listener.events
    assert set(data) == set(ReadingEvent.__annotations__)
    assert all(f"``{name}``" in (ReadingEvent.__doc__ or "") for name in FLAG)
    assert json.loads(json.dumps(data)) == data


def test_nothing_flagged_is_an_event_too(annotator: SAEAnnotator, listener: Listener, call: Call) -> None:
    call(annotator, "invoke", f"Only a {UNNOTED}.", config={"callbacks": [listener]})
    assert listener.events == [(READING_EVENT, READ | {"flags": [], "mentions": 0, "annotated": False})]


def test_observing_reports_flags_and_says_that_nothing_was_added(
    fake: FakeInspector, listener: Listener, call: Call
) -> None:
    call(SAEAnnotator(source=fake, observe=True), "invoke", TEXT, config={"callbacks": [listener]})
    assert listener.events == [(READING_EVENT, READ | {"annotated": False})]


@pytest.mark.parametrize("on_error", ["pass", "raise"])
@pytest.mark.parametrize(
    ("error", "reason"),
    [(InspectionTimeout(f"Late: {TEXT}"), "timeout"), (EngineError(TEXT, TEXT), "EngineError"),
     (RuntimeError(TEXT), "RuntimeError"), (InputError(TEXT), "InputError")],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_bypass_is_an_event_with_its_reason_and_no_text(
    fake: FakeInspector, listener: Listener, call: Call, error: Exception, reason: str, on_error: Any
) -> None:
    fake.then = error
    annotator = SAEAnnotator(source=fake, on_error=on_error)
    try:
        call(annotator, "invoke", TEXT, config={"callbacks": [listener]})
    except type(error):
        assert on_error == "raise"
    assert listener.events == [(READING_EVENT, BYPASSED | {"bypass": reason})]


def test_an_open_circuit_is_an_event(fake: FakeInspector, listener: Listener, call: Call) -> None:
    fake.then = EngineError("Broken.")
    annotator = SAEAnnotator(source=fake)
    for _ in range(6):
        call(annotator, "invoke", TEXT, config={"callbacks": [listener]})
    assert [data["bypass"] for _, data in listener.events] == ["EngineError"] * 5 + ["circuit open"]


def test_no_text_but_misread_words_and_notes_leaves_the_annotator(
    annotator: SAEAnnotator, listener: Listener, call: Call
) -> None:
    call(annotator, "invoke", [("system", f"Play the {UNNOTED}."), ("human", TEXT)], config={"callbacks": [listener]})
    ((_, data),) = listener.events
    written = json.dumps(data)
    assert UNNOTED not in written
    words = {value for flag in data["flags"] for value in flag.values() if isinstance(value, str)}
    assert words == {"bank", "usual", "other", RIVER}


def test_the_event_belongs_to_the_annotators_run(annotator: SAEAnnotator, listener: Listener, call: Call) -> None:
    config: RunnableConfig = {"callbacks": [listener], "tags": ["mine"], "metadata": {"tenant": "acme"}}
    call(annotator.with_config(run_name="reader"), "invoke", TEXT, config)
    ((run_id, about),) = listener.runs.items()
    (belongs,) = listener.belongs
    assert (about["name"], belongs["run_id"]) == ("reader", run_id)
    assert belongs["tags"] == about["tags"] == ["mine"]
    assert belongs["metadata"]["tenant"] == about["metadata"]["tenant"] == "acme"


async def test_asynchronous_handlers_are_awaited(annotator: SAEAnnotator) -> None:
    listener = AsyncListener()
    await annotator.ainvoke(TEXT, config={"callbacks": [listener]})
    await annotator.abatch([TEXT, "x"], config={"callbacks": [listener]})
    assert [len(data["flags"]) for _, data in listener.events] == [1, 1, 0]


def test_an_annotation_outside_of_any_run_tells_its_callbacks(
    annotator: SAEAnnotator, listener: Listener, call: Call
) -> None:
    result = call(annotator, "annotate", TEXT, {"callbacks": [listener]})
    assert result.notes == [RIVER]
    assert listener.events == [(READING_EVENT, READ)]


def test_without_callbacks_nothing_is_needed(annotator: SAEAnnotator, call: Call) -> None:
    assert call(annotator, "annotate", TEXT).notes == [RIVER]
    assert call(annotator, "annotate", TEXT, {"callbacks": []}).notes == [RIVER]
    assert RIVER in call(annotator, "invoke", TEXT)[0].content


def test_a_handler_that_fails_does_not_cost_the_answer(annotator: SAEAnnotator, call: Call) -> None:
    class Broken(BaseCallbackHandler):
        def on_custom_event(self, *args: Any, **options: Any) -> None:
            raise RuntimeError("boom")

    assert RIVER in call(annotator, "invoke", TEXT, config={"callbacks": [Broken()]})[0].content


def chain_of(annotator: SAEAnnotator, model: BaseChatModel | None = None) -> Runnable[dict[str, str], str]:
    prompt = ChatPromptTemplate.from_messages([("human", "I sat on the {place} with my " + UNNOTED + ".")])
    return prompt | annotator | (model or FakeListChatModel(responses=["Wet feet."])) | StrOutputParser()


async def test_astream_events_show_the_reading_before_the_model_begins(annotator: SAEAnnotator) -> None:
    config: RunnableConfig = {"tags": ["mine"], "metadata": {"tenant": "acme"}}
    events = [event async for event in chain_of(annotator).astream_events({"place": "bank"}, config, version="v2")]
    names = [(event["event"], event["name"]) for event in events]
    custom = names.index(("on_custom_event", READING_EVENT))
    started, ended = names.index(("on_chain_start", "SAEAnnotator")), names.index(("on_chain_end", "SAEAnnotator"))
    model = names.index(("on_chat_model_start", "FakeListChatModel"))
    assert started < custom < ended < model
    event, run = events[custom], events[started]
    assert event["data"] == READ
    assert event["run_id"] == run["run_id"]
    assert event["tags"] == ["mine"]
    assert event["metadata"]["tenant"] == "acme"
    assert Counter(names)["on_custom_event", READING_EVENT] == 1


async def test_astream_events_show_a_bypass(fake: FakeInspector) -> None:
    fake.then = EngineError("Broken.")
    chain = chain_of(SAEAnnotator(source=fake))
    events = [event async for event in chain.astream_events({"place": "bank"}, version="v2")]
    assert [event["data"] for event in events if event["event"] == "on_custom_event"] == [
        BYPASSED | {"bypass": "EngineError"}
    ]


def test_a_trace_shows_the_annotator_as_a_step_with_what_went_in_and_out(annotator: SAEAnnotator, call: Call) -> None:
    collector = RunCollectorCallbackHandler()
    config: RunnableConfig = {
        "callbacks": [collector], "run_name": "ask", "tags": ["mine"], "metadata": {"tenant": "acme"},
    }  # fmt: skip
    call(chain_of(annotator), "invoke", {"place": "bank"}, config)
    (root,) = collector.traced_runs
    steps: list[Run] = root.child_runs
    assert root.name == "ask"
    assert [step.name for step in steps] == [
        "ChatPromptTemplate",
        "SAEAnnotator",
        "FakeListChatModel",
        "StrOutputParser",
    ]
    step = steps[1]
    assert set(step.tags or []) == {"mine", "seq:step:2"}
    assert step.metadata["tenant"] == "acme"
    assert step.error is None
    assert RIVER in step.outputs["output"][0].content  # type: ignore[index]
    assert RIVER not in step.inputs["input"].to_messages()[0].content


def test_the_annotator_can_be_named_and_tagged_in_a_chain(
    annotator: SAEAnnotator, listener: Listener, call: Call
) -> None:
    named = annotator.with_config(run_name="reader", tags=["check"], metadata={"step": 1})
    chain = RunnableLambda(lambda text: text) | named
    call(chain, "invoke", TEXT, config={"callbacks": [listener], "tags": ["mine"]})
    (run,) = [about for about in listener.runs.values() if about["name"] == "reader"]
    assert {"mine", "check"} <= set(run["tags"])
    assert run["metadata"]["step"] == 1
    assert "check" in listener.belongs[0]["tags"]


# Streaming.

TOKENS = ["Wet ", "feet", " and ", "cold ", "hands."]


class TellingModel(BaseChatModel):
    """Writes down when it has made a token; the next one is made when it is asked for."""

    log: Any  # the test's own list; pydantic would copy it

    @property
    def _llm_type(self) -> str:
        return "telling"

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=AIMessage("".join(TOKENS)))])

    def _stream(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> Iterator[ChatGenerationChunk]:
        self.log.append(f"sent {'note' if RIVER in messages[-1].content else 'plain'}")
        for token in TOKENS:
            self.log.append(f"made {token}")
            yield ChatGenerationChunk(message=AIMessageChunk(token))

    async def _astream(
        self, messages: list[BaseMessage], *args: Any, **kwargs: Any
    ) -> AsyncIterator[ChatGenerationChunk]:
        for chunk in self._stream(messages):
            yield chunk


INTERLEAVED = ["sent note", *[line for token in TOKENS for line in (f"made {token}", f"got {token}")]]


def pieces(log: list[str]) -> Iterator[dict[str, str]]:
    """The chain's input as a stream of one piece."""
    log.append("input")
    yield {"place": "bank"}
    log.append("input ended")


async def apieces(log: list[str]) -> AsyncIterator[dict[str, str]]:
    for piece in pieces(log):
        yield piece


def test_every_token_is_handed_on_before_the_next_is_made_by_stream(annotator: SAEAnnotator) -> None:
    log: list[str] = []
    for piece in chain_of(annotator, TellingModel(log=log)).stream({"place": "bank"}):
        log += [f"got {piece}"] if piece else []
    assert log == INTERLEAVED


async def test_every_token_is_handed_on_before_the_next_is_made_by_astream(annotator: SAEAnnotator) -> None:
    log: list[str] = []
    async for piece in chain_of(annotator, TellingModel(log=log)).astream({"place": "bank"}):
        log += [f"got {piece}"] if piece else []
    assert log == INTERLEAVED


def test_every_token_is_handed_on_before_the_next_is_made_by_transform(annotator: SAEAnnotator) -> None:
    log: list[str] = []
    for piece in chain_of(annotator, TellingModel(log=log)).transform(pieces(log)):
        log += [f"got {piece}"] if piece else []
    assert log == ["input", "input ended", *INTERLEAVED]


async def test_every_token_is_handed_on_before_the_next_is_made_by_atransform(annotator: SAEAnnotator) -> None:
    log: list[str] = []
    async for piece in chain_of(annotator, TellingModel(log=log)).atransform(apieces(log)):
        log += [f"got {piece}"] if piece else []
    assert log == ["input", "input ended", *INTERLEAVED]


@pytest.mark.parametrize("callbacks", [[], ["listener"]], ids=["alone", "watched"])
def test_tokens_are_not_held_up_when_the_reading_fails_or_is_watched(
    fake: FakeInspector, listener: Listener, callbacks: list[str]
) -> None:
    fake.then = EngineError("Broken.")
    log: list[str] = []
    chain = chain_of(SAEAnnotator(source=fake), TellingModel(log=log))
    for piece in chain.stream({"place": "bank"}, {"callbacks": [listener] if callbacks else []}):
        log += [f"got {piece}"] if piece else []
    assert log == ["sent plain", *INTERLEAVED[1:]]
    assert len(listener.events) == len(callbacks)


def test_a_consumer_that_stops_leaves_the_model_as_without_annotator(annotator: SAEAnnotator) -> None:
    logs: list[list[str]] = []
    for middle in (annotator, RunnableLambda(annotator.invoke)):
        logs.append([])
        prompt = ChatPromptTemplate.from_messages([("human", "I sat on the {place}.")])
        stream = (prompt | middle | TellingModel(log=logs[-1]) | StrOutputParser()).stream({"place": "bank"})
        assert next(stream) == TOKENS[0]
        assert logs[-1] == INTERLEAVED[:2]
        stream.close()  # type: ignore[attr-defined]
    assert logs[0] == logs[1]


async def test_a_consumer_that_stops_stops_the_model_asynchronously(annotator: SAEAnnotator) -> None:
    log: list[str] = []
    stream = chain_of(annotator, TellingModel(log=log)).astream({"place": "bank"})
    assert await anext(stream) == TOKENS[0]
    await stream.aclose()  # type: ignore[attr-defined]
    assert log == INTERLEAVED[:2]


def test_input_in_pieces_is_read_once_and_whole(
    annotator: SAEAnnotator, fake: FakeInspector, listener: Listener
) -> None:
    found = list(annotator.transform(iter(["I sat on", " the bank"]), {"callbacks": [listener]}))
    assert found == [[HumanMessage(f"I sat on the bank\n\n[Note on the wording above: {RIVER}]")]]
    assert [request.messages[0]["content"] for request in fake.requests] == ["I sat on the bank"]
    assert len(listener.events) == 1


async def test_input_in_pieces_is_read_once_and_whole_asynchronously(
    annotator: SAEAnnotator, fake: FakeInspector, listener: Listener
) -> None:
    async def halves() -> AsyncIterator[str]:
        yield "I sat on"
        yield " the bank"

    found = [item async for item in annotator.atransform(halves(), {"callbacks": [listener]})]
    assert found == [[HumanMessage(f"I sat on the bank\n\n[Note on the wording above: {RIVER}]")]]
    assert [request.messages[0]["content"] for request in fake.requests] == ["I sat on the bank"]
    assert len(listener.events) == 1


# Metrics.


class Measured:
    """OpenTelemetry's numbers, read in memory: ``(name, attributes) -> value``, histograms as (count, sum)."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import InMemoryMetricReader

        self._reader = InMemoryMetricReader()
        self.provider = MeterProvider([self._reader], shutdown_on_exit=False)
        monkeypatch.setattr("middleware.metrics._api", SimpleNamespace(get_meter=self.provider.get_meter))
        monkeypatch.setattr(METRICS, "_made", None)

    def metrics(self) -> Iterable[Any]:
        data = self._reader.get_metrics_data()
        return [m for r in data.resource_metrics for s in r.scope_metrics for m in s.metrics] if data else []

    def points(self) -> dict[tuple[str, tuple[Any, ...]], Any]:
        return {
            (metric.name, tuple(sorted(point.attributes.items()))): (
                (point.count, point.sum) if hasattr(point, "count") else point.value
            )
            for metric in self.metrics()
            for point in metric.data.data_points
        }


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Iterator[Measured]:
    pytest.importorskip("opentelemetry.sdk")
    measured = Measured(monkeypatch)
    yield measured
    measured.provider.shutdown()


def test_metrics_count_readings_flags_bypasses_and_time(fake: FakeInspector, measured: Measured, call: Call) -> None:
    annotator = SAEAnnotator(source=fake)
    fake.outcomes = [None, None, None, InspectionTimeout(TEXT), RuntimeError(TEXT)]
    call(annotator, "invoke", TEXT)
    call(annotator, "invoke", f"bank, bank, {UNNOTED}")
    call(annotator, "batch", [UNNOTED, TEXT, TEXT])
    call(annotator, "invoke", "")
    assert measured.points() == {
        ("sensecheck.inspections", (("flagged", True),)): 2,
        ("sensecheck.inspections", (("flagged", False),)): 1,
        ("sensecheck.flags", (("concept", "bank"),)): 3,
        ("sensecheck.bypasses", (("reason", "timeout"),)): 1,
        ("sensecheck.bypasses", (("reason", "RuntimeError"),)): 1,
        ("sensecheck.bypasses", (("reason", "InputError"),)): 1,
        ("sensecheck.inspection.time", ()): (3, 3.0),
    }
    assert annotator.stats.bypassed == Counter({"timeout": 1, "RuntimeError": 1, "InputError": 1})


def test_metrics_hold_no_text_of_prompts(fake: FakeInspector, measured: Measured, call: Call) -> None:
    annotator = SAEAnnotator(source=fake)
    call(annotator, "batch", [TEXT, f"The BANK and a {UNNOTED}."])
    fake.then = RuntimeError(TEXT)
    call(annotator, "invoke", TEXT)
    attributes = [point.attributes for metric in measured.metrics() for point in metric.data.data_points]
    assert {name for some in attributes for name in some} == {"flagged", "concept", "reason"}
    values = {value for some in attributes for value in some.values()}
    assert values == {True, "bank", "RuntimeError"}  # the concept's slug, not the words "BANK" or "bank" as written
    assert not any(metric.data.data_points[0].exemplars for metric in measured.metrics())


def test_metrics_are_named_and_described_as_documented(fake: FakeInspector, measured: Measured, call: Call) -> None:
    import middleware.metrics

    fake.outcomes = [None, EngineError("Broken.")]
    annotator = SAEAnnotator(source=fake)
    call(annotator, "invoke", TEXT)
    call(annotator, "invoke", TEXT)
    found = {metric.name: metric for metric in measured.metrics()}
    assert len(found) == 4
    assert all(f"``{name}``" in (middleware.metrics.__doc__ or "") for name in found)
    assert all(metric.description and metric.unit for metric in found.values())


def test_without_opentelemetry_everything_else_is_counted(
    fake: FakeInspector, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("middleware.metrics._api", None)
    fake.outcomes = [None, EngineError("Broken.")]
    annotator = SAEAnnotator(source=fake)
    call(annotator, "invoke", TEXT)
    call(annotator, "invoke", TEXT)
    assert (annotator.stats.inspected, annotator.stats.bypassed) == (1, Counter({"EngineError": 1}))
