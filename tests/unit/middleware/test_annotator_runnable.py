"""The annotator as a LangChain runnable: what goes in, what comes out, how it composes. Readings are scripted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable, RunnableLambda
from pydantic import ValidationError

from middleware import Annotated, InspectionSource, SAEAnnotator, Stats
from middleware.inputs import to_messages
from sae_runtime.errors import EngineError, InputError

Call = Callable[..., Any]

TEXT = "I sat on the bank."
NOTE = '"bank" is the edge of a river here.'
NOTED = f"{TEXT}\n\n[Note on the wording above: {NOTE}]"


@pytest.fixture
def source(scripted: Any) -> Any:
    return scripted()


@pytest.fixture
def annotator(source: Any) -> SAEAnnotator:
    return SAEAnnotator(source=source)


class Recorder(BaseCallbackHandler):
    """Keeps the names of runs, with their tags, and what chat models were sent."""

    def __init__(self) -> None:
        self.runs: list[tuple[str | None, list[str]]] = []
        self.sent: list[list[BaseMessage]] = []

    def on_chain_start(self, serialized: Any, inputs: Any, *, tags: list[str] | None = None, **kwargs: Any) -> None:
        self.runs.append((kwargs.get("name"), tags or []))

    def on_chat_model_start(self, serialized: Any, messages: list[list[BaseMessage]], **kwargs: Any) -> None:
        self.sent.extend(messages)


def chain_of(annotator: SAEAnnotator) -> Runnable[dict[str, str], str]:
    prompt = ChatPromptTemplate.from_messages([("system", "Be brief."), ("human", "I sat on the {place}.")])
    return prompt | annotator | FakeListChatModel(responses=["Wet feet."]) | StrOutputParser()


@pytest.mark.parametrize(
    "value",
    [TEXT, [("human", TEXT)], [{"role": "user", "content": TEXT}], HumanMessage(TEXT), {"messages": [("human", TEXT)]},
     ChatPromptTemplate.from_messages([("human", "{x}")]).invoke({"x": TEXT})],
    ids=["str", "tuples", "dicts", "message", "state", "prompt"],
)  # fmt: skip
def test_invoke_adds_the_note_whatever_the_input(annotator: SAEAnnotator, call: Call, value: Any) -> None:
    assert call(annotator, "invoke", value) == [HumanMessage(NOTED)]


@pytest.mark.parametrize(
    ("placement", "expected"),
    [
        ("after", [HumanMessage(NOTED)]),
        ("inline", [HumanMessage(f"I sat on the bank [Note: {NOTE}].")]),
        ("system", [SystemMessage(f"[Note on the wording of the user's message: {NOTE}]"), HumanMessage(TEXT)]),
    ],
)
def test_placement_is_an_option(source: Any, call: Call, placement: Any, expected: list[BaseMessage]) -> None:
    assert call(SAEAnnotator(source=source, placement=placement), "invoke", TEXT) == expected


def test_the_source_is_asked_about_the_last_user_message(source: Any, call: Call) -> None:
    annotator = SAEAnnotator(source=source, domain="rivers", deadline=1.5)
    messages = [SystemMessage("s"), HumanMessage("old bank"), AIMessage("a"), HumanMessage(TEXT), AIMessage("I think")]
    result = call(annotator, "invoke", messages)
    chat = [(m["role"], m["content"]) for m in source.calls[0]["messages"]]
    assert chat == [("system", "s"), ("user", "old bank"), ("assistant", "a"), ("user", TEXT), ("assistant", "I think")]
    assert {k: v for k, v in source.calls[0].items() if k != "messages"} == {
        "domain": "rivers",
        "read": [3],
        "only": None,
        "without": frozenset(),
        "picks": {},
        "glossary": None,
        "deadline": 1.5,
    }
    assert [message.content for message in result] == ["s", "old bank", "a", NOTED, "I think"]


def test_annotate_tells_what_it_did(annotator: SAEAnnotator, call: Call) -> None:
    result = call(annotator, "annotate", TEXT)
    assert isinstance(result, Annotated)
    assert result.messages == [HumanMessage(NOTED)]
    assert result.notes == [NOTE]
    assert result.bypass is None
    assert [misread.text for misread in result.reading.misreads] == ["bank"]


def test_nothing_flagged_leaves_the_very_same_messages(annotator: SAEAnnotator, call: Call) -> None:
    messages = [SystemMessage("s"), HumanMessage("Nothing to misread.")]
    result = call(annotator, "invoke", messages)
    assert len(result) == 2
    assert all(a is b for a, b in zip(result, messages, strict=True))
    assert annotator.stats == Stats(inspected=1, flagged=0)


def test_the_input_is_not_changed(annotator: SAEAnnotator, call: Call) -> None:
    messages = [HumanMessage([{"type": "text", "text": TEXT}])]
    result = call(annotator, "invoke", messages)
    assert messages == [HumanMessage([{"type": "text", "text": TEXT}])]
    assert result == [HumanMessage([{"type": "text", "text": NOTED}])]


def test_batch_keeps_the_order_and_counts_every_reading(annotator: SAEAnnotator, call: Call) -> None:
    inputs = [f"{number}: the {'bank' if number % 2 else 'shore'}" for number in range(20)]
    results = call(annotator, "batch", inputs, config={"max_concurrency": 4})
    assert [result[0].content.split("\n")[0] for result in results] == inputs
    assert [NOTE in result[0].content for result in results] == [bool(number % 2) for number in range(20)]
    assert annotator.stats == Stats(inspected=20, flagged=10)


def test_batch_can_return_exceptions(annotator: SAEAnnotator, call: Call) -> None:
    good, bad = call(annotator, "batch", [TEXT, 42], return_exceptions=True)
    assert good == [HumanMessage(NOTED)]
    assert isinstance(bad, InputError)


def test_stream_gives_one_chunk(annotator: SAEAnnotator) -> None:
    assert list(annotator.stream(TEXT)) == [[HumanMessage(NOTED)]]


async def test_astream_gives_one_chunk(annotator: SAEAnnotator) -> None:
    assert [chunk async for chunk in annotator.astream(TEXT)] == [[HumanMessage(NOTED)]]


def test_a_chain_sends_the_notes_to_the_model(annotator: SAEAnnotator, call: Call) -> None:
    recorder = Recorder()
    answer = call(chain_of(annotator), "invoke", {"place": "bank"}, config={"callbacks": [recorder]})
    assert answer == "Wet feet."
    assert recorder.sent == [[SystemMessage("Be brief."), HumanMessage(NOTED)]]


def test_a_chain_can_be_batched(annotator: SAEAnnotator, call: Call) -> None:
    assert call(chain_of(annotator), "batch", [{"place": "bank"}, {"place": "shore"}]) == ["Wet feet.", "Wet feet."]
    assert annotator.stats == Stats(inspected=2, flagged=1)


def test_a_chain_streams_the_answer_piece_by_piece(annotator: SAEAnnotator) -> None:
    pieces = list(chain_of(annotator).stream({"place": "bank"}))
    assert "".join(pieces) == "Wet feet."
    assert len(pieces) > 1
    assert annotator.stats == Stats(inspected=1, flagged=1)


async def test_a_chain_streams_asynchronously(annotator: SAEAnnotator) -> None:
    pieces = [piece async for piece in chain_of(annotator).astream({"place": "bank"})]
    assert "".join(pieces) == "Wet feet."
    assert len(pieces) > 1
    assert annotator.stats == Stats(inspected=1, flagged=1)


def test_callbacks_see_the_run_by_its_name(annotator: SAEAnnotator, call: Call) -> None:
    recorder = Recorder()
    call(annotator, "invoke", TEXT, config={"callbacks": [recorder], "tags": ["mine"]})
    assert recorder.runs == [("SAEAnnotator", ["mine"])]


def test_with_config_renames_and_tags_the_run(annotator: SAEAnnotator, call: Call) -> None:
    recorder = Recorder()
    renamed = annotator.with_config(run_name="reader", tags=["t"], callbacks=[recorder])
    assert call(renamed, "invoke", TEXT) == [HumanMessage(NOTED)]
    assert recorder.runs == [("reader", ["t"])]


def test_with_retry_tries_again(scripted: Any, call: Call) -> None:
    source = scripted(EngineError("broken"))
    retrying = SAEAnnotator(source=source, on_error="raise").with_retry(
        retry_if_exception_type=(EngineError,), wait_exponential_jitter=False, stop_after_attempt=2
    )
    assert call(retrying, "invoke", TEXT) == [HumanMessage(NOTED)]
    assert len(source.calls) == 2


def test_with_fallbacks_falls_back(scripted: Any, call: Call) -> None:
    broken = SAEAnnotator(source=scripted(then=EngineError("broken")), on_error="raise")
    assert call(broken.with_fallbacks([RunnableLambda(to_messages)]), "invoke", TEXT) == [HumanMessage(TEXT)]


def test_bind_is_accepted(annotator: SAEAnnotator, call: Call) -> None:
    assert call(annotator.bind(stop=["\n"]), "invoke", TEXT) == [HumanMessage(NOTED)]


async def test_invoke_works_inside_a_running_event_loop(annotator: SAEAnnotator) -> None:
    assert annotator.invoke(TEXT) == [HumanMessage(NOTED)]
    assert annotator.batch([TEXT]) == [[HumanMessage(NOTED)]]


async def test_ainvoke_leaves_the_event_loop_free(source: Any) -> None:
    entered, release = asyncio.Event(), asyncio.Event()
    read = source.ainspect

    async def wait_then_read(*args: Any, **options: Any) -> Any:
        entered.set()
        await release.wait()
        return await read(*args, **options)

    source.ainspect = wait_then_read
    task = asyncio.create_task(SAEAnnotator(source=source).ainvoke(TEXT))
    await entered.wait()
    assert not task.done()
    release.set()
    assert await task == [HumanMessage(NOTED)]


@pytest.mark.parametrize("change", [{"placement": "before"}, {"on_error": "ignore"}, {"deadline": 0}, {"deadline": -1},
                                    {"domain": 3}, {"source": object()}, {"source": None}])  # fmt: skip
def test_options_are_validated(source: Any, change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(change))):
        SAEAnnotator(**{"source": source, **change})


def test_it_is_frozen_and_shows_its_source_without_the_key(annotator: SAEAnnotator) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        annotator.placement = "inline"
    assert annotator.placement == "after"
    assert isinstance(annotator.source, InspectionSource)
    assert "source" not in annotator.model_dump()
    shown = repr(SAEAnnotator.from_url("http://127.0.0.1:9", api_key="secret", domain="rivers"))
    assert shown == "SAEAnnotator(source=ServerSource('http://127.0.0.1:9'), domain='rivers')"
