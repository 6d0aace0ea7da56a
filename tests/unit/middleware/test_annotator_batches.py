"""Batches: prompts that come together are read together, and none costs another its reading, its order or its events."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from batching import BOOM, PATIENCE, noted
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import BaseMessage, HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable

from middleware import InspectionRequest, SAEAnnotator, Stats
from middleware.events import READING_EVENT
from middleware.testing import FakeInspector
from sae_runtime.detector import Reading
from sae_runtime.errors import EngineError, InputError, InspectionTimeout

Call = Callable[..., Any]

NOTES = {"bank": "River.", "spring": "Coil."}


class Recorder(BaseCallbackHandler):
    """Keeps the payloads of events with their tags, the errors of runs, and what chat models were sent."""

    def __init__(self) -> None:
        self.events: list[tuple[Any, list[str]]] = []
        self.errors: list[BaseException] = []
        self.sent: list[BaseMessage] = []

    def on_custom_event(self, name: str, data: Any, *, tags: list[str] | None = None, **kwargs: Any) -> None:
        assert name == READING_EVENT
        self.events.append((data, tags or []))

    def on_chain_error(self, error: BaseException, **kwargs: Any) -> None:
        self.errors.append(error)

    def on_chat_model_start(self, serialized: Any, messages: list[list[BaseMessage]], **kwargs: Any) -> None:
        self.sent.extend(message for prompt in messages for message in prompt)


@pytest.fixture
def fake() -> FakeInspector:
    return FakeInspector(NOTES)


def chain_of(annotator: SAEAnnotator) -> Runnable[dict[str, str], str]:
    prompt = ChatPromptTemplate.from_messages([("human", "The {word}.")])
    return prompt | annotator | FakeListChatModel(responses=["Wet feet."]) | StrOutputParser()


def as_completed(request_call: Call, target: Any, *args: Any, **options: Any) -> list[tuple[int, Any]]:
    """All of ``batch_as_completed`` or ``abatch_as_completed``, whichever the fixture ``call`` stands for."""

    class Collector:
        def all(self) -> list[Any]:
            return list(target.batch_as_completed(*args, **options))

        async def aall(self) -> list[Any]:
            return [found async for found in target.abatch_as_completed(*args, **options)]

    return request_call(Collector(), "all")


def test_a_batch_call_is_one_inspection_batch(annotator: SAEAnnotator, fake: FakeInspector, call: Call) -> None:
    results = call(annotator, "batch", ["the bank", "the shore", "a spring"])
    assert results == [[noted("the bank", "River.")], [noted("the shore")], [noted("a spring", "Coil.")]]
    assert fake.batches == [(3, None)]
    assert annotator.stats == Stats(inspected=3, flagged=2)


def test_a_batch_of_a_chain_is_one_inspection_batch(annotator: SAEAnnotator, fake: FakeInspector, call: Call) -> None:
    recorder = Recorder()
    words = ["bank", "shore", "spring", "bank"]
    answers = call(chain_of(annotator), "batch", [{"word": w} for w in words], config={"callbacks": [recorder]})
    assert answers == ["Wet feet."] * 4
    assert fake.batches == [(4, None)]
    assert [request.messages[0]["content"] for request in fake.requests] == [f"The {word}." for word in words]
    assert Counter(message.content for message in recorder.sent) == Counter(
        [noted("The bank.", "River.").content] * 2 + ["The shore.", noted("The spring.", "Coil.").content]
    )


@pytest.mark.parametrize("limit", [1, 3, 50])
def test_max_concurrency_is_handed_on_as_the_limit(
    annotator: SAEAnnotator, fake: FakeInspector, call: Call, limit: int
) -> None:
    call(annotator, "batch", ["bank"] * 5, config={"max_concurrency": limit})
    call(chain_of(annotator), "batch", [{"word": "bank"}] * 5, config={"max_concurrency": limit})
    assert fake.batches == [(5, limit), (5, limit)]


def test_one_prompt_is_no_batch(annotator: SAEAnnotator, fake: FakeInspector, call: Call) -> None:
    assert call(annotator, "batch", ["the bank"]) == [[noted("the bank", "River.")]]
    assert (fake.batches, len(fake.requests)) == ([], 1)


def test_an_empty_batch_asks_nothing(annotator: SAEAnnotator, fake: FakeInspector, call: Call) -> None:
    assert call(annotator, "batch", []) == []
    assert call(chain_of(annotator), "batch", []) == []
    assert as_completed(call, annotator, []) == []
    assert (fake.batches, fake.requests, annotator.stats) == ([], [], Stats())


def test_the_order_is_kept_whatever_fails(fake: FakeInspector, call: Call) -> None:
    fake.outcomes = [None, BOOM, None, InspectionTimeout("Late."), None]
    annotator = SAEAnnotator(source=fake)
    results = call(annotator, "batch", [f"{number}: bank" for number in range(6)])
    expected = [noted(f"{number}: bank", *([] if number in (1, 3) else ["River."])) for number in range(6)]
    assert [result[0] for result in results] == expected
    assert annotator.stats == Stats(4, 4, Counter({"EngineError": 1, "timeout": 1}))


def test_prompts_that_cannot_be_read_do_not_reach_the_source(fake: FakeInspector, call: Call) -> None:
    annotator = SAEAnnotator(source=fake)
    results = call(annotator, "batch", ["bank", "", 42, "spring"], return_exceptions=True)
    assert results[:2] == [[noted("bank", "River.")], [HumanMessage("")]]
    assert isinstance(results[2], InputError)
    assert results[3] == [noted("spring", "Coil.")]
    assert fake.batches == [(2, None)]
    assert annotator.stats == Stats(2, 2, Counter({"InputError": 1}))


def test_exceptions_are_returned_or_the_first_is_raised(fake: FakeInspector, call: Call) -> None:
    fake.outcomes = [None, BOOM, InspectionTimeout("Late.")]
    annotator = SAEAnnotator(source=fake, on_error="raise")
    good, broken, late = call(annotator, "batch", ["bank"] * 3, return_exceptions=True)
    assert good == [noted("bank", "River.")]
    assert broken is BOOM
    assert isinstance(late, InspectionTimeout)
    fake.outcomes = [None, BOOM, InspectionTimeout("Late.")]
    with pytest.raises(EngineError) as caught:
        call(annotator, "batch", ["bank"] * 3)
    assert caught.value is BOOM
    assert annotator.stats == Stats(2, 2, Counter({"EngineError": 2, "timeout": 2}))


def test_a_chain_returns_exceptions_in_their_places(fake: FakeInspector, call: Call) -> None:
    fake.outcomes = [None, BOOM, None]
    chain = chain_of(SAEAnnotator(source=fake, on_error="raise"))
    found = call(chain, "batch", [{"word": "bank"}] * 3, return_exceptions=True)
    assert found == ["Wet feet.", BOOM, "Wet feet."]


def test_each_prompt_has_its_own_configuration(fake: FakeInspector, call: Call) -> None:
    annotator = SAEAnnotator(source=fake, domain="rivers")
    recorders = [Recorder(), Recorder(), Recorder()]
    configs: list[Any] = [
        {"callbacks": [recorders[0]], "tags": ["first"]},
        {"callbacks": [recorders[1]], "configurable": {"sensecheck_without": ["bank"], "sensecheck_domain": "finance"}},
        {"callbacks": [recorders[2]], "max_concurrency": 7},
    ]
    results = call(annotator, "batch", ["bank", "bank", "spring"], configs)
    assert [result[0] for result in results] == [noted("bank", "River."), noted("bank"), noted("spring", "Coil.")]
    assert [request.domain for request in fake.requests] == ["rivers", "finance", "rivers"]
    assert [[flag["concept"] for flag in recorder.events[0][0]["flags"]] for recorder in recorders] == [
        ["bank"], [], ["spring"],
    ]  # fmt: skip
    assert [len(recorder.events) for recorder in recorders] == [1, 1, 1]
    assert recorders[0].events[0][1] == ["first"]
    assert fake.batches == [(3, None)]  # the first configuration is the batch's, as in LangChain


@pytest.mark.parametrize("on_error", ["pass", "raise"])
def test_annotations_can_be_had_in_batches_with_errors_in_their_places(
    fake: FakeInspector, call: Call, on_error: Any
) -> None:
    fake.outcomes = [None, BOOM, None]
    annotator = SAEAnnotator(source=fake, on_error=on_error)
    first, broken, third, unreadable = call(annotator, "annotate_batch", ["bank", "bank", "spring", 42])
    assert (first.notes, third.notes, fake.batches) == (["River."], ["Coil."], [(3, None)])
    assert isinstance(unreadable, InputError)
    assert broken is BOOM if on_error == "raise" else broken.bypass == "EngineError"
    assert call(annotator, "annotate_batch", []) == []
    configs = [{"max_concurrency": 2}, {"configurable": {"sensecheck_without": ["bank"]}}]
    assert [found.notes for found in call(annotator, "annotate_batch", ["bank", "bank"], configs)] == [["River."], []]
    assert fake.batches == [(3, None), (2, 2)]


def test_there_is_one_event_per_prompt_in_their_order(fake: FakeInspector, call: Call) -> None:
    fake.outcomes = [None, BOOM, None]
    recorder = Recorder()
    call(SAEAnnotator(source=fake), "batch", ["bank", "bank", "shore"], config={"callbacks": [recorder]})
    events = [data for data, _ in recorder.events]
    assert [(len(event["flags"]), event["bypass"], event["annotated"]) for event in events] == [
        (1, None, True), (0, "EngineError", False), (0, None, False),
    ]  # fmt: skip
    assert recorder.errors == []


def test_a_run_that_raises_has_an_event_and_an_error(fake: FakeInspector, call: Call) -> None:
    fake.outcomes = [None, BOOM]
    recorder = Recorder()
    annotator = SAEAnnotator(source=fake, on_error="raise")
    call(annotator, "batch", ["bank"] * 2, config={"callbacks": [recorder]}, return_exceptions=True)
    assert [data["bypass"] for data, _ in recorder.events] == [None, "EngineError"]
    assert recorder.errors == [BOOM]


def test_a_batch_that_all_fails_counts_once_towards_the_circuit(fake: FakeInspector, call: Call) -> None:
    fake.then = BOOM
    annotator = SAEAnnotator(source=fake)
    for _ in range(5):
        assert call(annotator, "batch", ["bank"] * 3) == [[HumanMessage("bank")]] * 3
    assert fake.batches == [(3, None)] * 5
    assert annotator.stats.bypassed == Counter({"EngineError": 15})
    assert call(annotator, "batch", ["bank"] * 3) == [[HumanMessage("bank")]] * 3
    assert len(fake.batches) == 5  # nothing was tried
    assert annotator.stats.bypassed == Counter({"EngineError": 15, "circuit open": 3})


def test_a_batch_of_which_one_prompt_is_read_shows_that_the_source_is_well(fake: FakeInspector, call: Call) -> None:
    annotator = SAEAnnotator(source=fake)
    for _ in range(6):
        fake.outcomes = [BOOM, None, BOOM]
        call(annotator, "batch", ["bank"] * 3)
    assert annotator.stats == Stats(6, 6, Counter({"EngineError": 12}))


def test_a_batch_of_refused_prompts_never_opens_the_circuit(fake: FakeInspector, call: Call) -> None:
    fake.then = InputError("Too long.", "Shorten it.")
    annotator = SAEAnnotator(source=fake)
    for _ in range(7):
        call(annotator, "batch", ["bank"] * 2)
    assert annotator.stats.bypassed == Counter({"InputError": 14})
    assert len(fake.batches) == 7


def test_one_refused_prompt_does_not_hide_that_the_source_is_down(fake: FakeInspector, call: Call) -> None:
    annotator = SAEAnnotator(source=fake)
    for _ in range(6):
        fake.outcomes = [InputError("Too long."), BOOM]
        call(annotator, "batch", ["bank"] * 2)
    assert annotator.stats.bypassed == Counter({"InputError": 5, "EngineError": 5, "circuit open": 2})


def test_the_circuit_of_a_batch_is_that_of_single_prompts(fake: FakeInspector, call: Call) -> None:
    fake.then = BOOM
    annotator = SAEAnnotator(source=fake)
    for _ in range(5):
        call(annotator, "invoke", "bank")
    call(annotator, "batch", ["bank"] * 2)
    assert (fake.batches, annotator.stats.bypassed["circuit open"]) == ([], 2)


@pytest.mark.parametrize("answer", [[], [None]], ids=["none", "too-few"])
def test_a_source_that_returns_too_few_results_lets_the_prompts_pass(
    fake: FakeInspector, call: Call, monkeypatch: pytest.MonkeyPatch, answer: list[Any]
) -> None:
    async def later(*args: Any, **options: Any) -> Any:
        return answer

    monkeypatch.setattr(fake, "inspect_batch", lambda *args, **options: answer)
    monkeypatch.setattr(fake, "ainspect_batch", later)
    annotator = SAEAnnotator(source=fake)
    assert call(annotator, "batch", ["bank"] * 2) == [[HumanMessage("bank")]] * 2
    assert sum(annotator.stats.bypassed.values()) == 2


def test_batch_as_completed_gives_every_result_with_its_place(
    annotator: SAEAnnotator, fake: FakeInspector, call: Call
) -> None:
    found = as_completed(call, annotator, ["the bank", "the shore", "a spring"])
    assert sorted(found, key=lambda item: item[0]) == [
        (0, [noted("the bank", "River.")]), (1, [noted("the shore")]), (2, [noted("a spring", "Coil.")]),
    ]  # fmt: skip
    assert fake.batches == []  # each is wanted as soon as it is there, so none waits for the others
    assert annotator.stats == Stats(inspected=3, flagged=2)


def test_batch_as_completed_of_a_chain_answers_each(annotator: SAEAnnotator, call: Call) -> None:
    recorder = Recorder()
    found = as_completed(
        call,
        chain_of(annotator),
        [{"word": "bank"}, {"word": "shore"}],
        {"callbacks": [recorder], "max_concurrency": 2},
    )
    assert sorted(found) == [(0, "Wet feet."), (1, "Wet feet.")]
    assert sorted(len(data["flags"]) for data, _ in recorder.events) == [0, 1]


def test_batch_as_completed_can_return_exceptions(fake: FakeInspector, call: Call) -> None:
    fake.outcomes = [BOOM]
    annotator = SAEAnnotator(source=fake, on_error="raise")
    found = as_completed(call, annotator, ["bank"] * 3, return_exceptions=True)
    assert sorted(index for index, _ in found) == [0, 1, 2]
    assert Counter(type(result).__name__ for _, result in found) == Counter({"list": 2, "EngineError": 1})


async def test_a_slow_prompt_does_not_hold_up_the_others_of_abatch_as_completed(fake: FakeInspector) -> None:
    release = asyncio.Event()
    read = fake.ainspect

    async def waiting(request: InspectionRequest, *, deadline: float) -> Reading:
        if "slow" in request.messages[0]["content"]:
            await release.wait()
        return await read(request, deadline=deadline)

    fake.ainspect = waiting  # type: ignore[method-assign]
    order = []
    async for index, _ in SAEAnnotator(source=fake).abatch_as_completed(["slow bank", "bank", "spring"]):
        order.append(index)
        if len(order) == 2:
            release.set()
    assert sorted(order[:2]) == [1, 2]
    assert order[2:] == [0]


def test_a_slow_prompt_does_not_hold_up_the_others_of_batch_as_completed(fake: FakeInspector) -> None:
    release = threading.Event()
    read = fake.inspect

    def waiting(request: InspectionRequest, *, deadline: float) -> Reading:
        if "slow" in request.messages[0]["content"]:
            assert release.wait(PATIENCE)
        return read(request, deadline=deadline)

    fake.inspect = waiting  # type: ignore[method-assign]
    order = []
    for index, _ in SAEAnnotator(source=fake).batch_as_completed(["slow bank", "bank", "spring"]):
        order.append(index)
        if len(order) == 2:
            release.set()
    assert sorted(order[:2]) == [1, 2]
    assert order[2:] == [0]
