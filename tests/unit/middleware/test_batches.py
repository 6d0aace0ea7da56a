"""Batches: prompts that come together are read together, and none costs another its reading, its order or its events."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import BaseMessage, HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable

from middleware import CatalogSource, Glossary, InspectionRequest, SAEAnnotator, Stats
from middleware.events import READING_EVENT
from middleware.testing import FakeInspector
from sae_runtime.catalog.view import CatalogView, Concept, Feature, Sense
from sae_runtime.detector import Detector, Inspector, Reading
from sae_runtime.engines.chat import EncodedChat, TokenSpan
from sae_runtime.errors import EngineError, InputError, InspectionTimeout
from sae_runtime.models import ModelFingerprint
from sae_runtime.sae import JumpReLUSAE

Call = Callable[..., Any]

PATIENCE = 30.0  # seconds; only a broken product waits that long
NOTES = {"bank": "River.", "spring": "Coil."}
BOOM = EngineError("Broken.", "Mend it.")


def noted(text: str, *notes: str) -> HumanMessage:
    return HumanMessage(f"{text}\n\n[Note on the wording above: {' '.join(notes)}]" if notes else text)


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


@pytest.fixture
def annotator(fake: FakeInspector) -> SAEAnnotator:
    return SAEAnnotator(source=fake)


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


# The real inspector, with an engine that needs no model.

WORDS = {"river": 0, "money": 1, "bank": 2}


class WordEncoder:
    """A token per word; a conversation that says "overlong" is refused."""

    def encode(self, messages: Any, *, limit: int) -> EncodedChat:
        spans, ids = [TokenSpan("<user>", None, 0, 0)], [9]
        for number, message in enumerate(messages):
            if "overlong" in message["content"]:
                raise InputError("Too long.", "Shorten it.")
            start = 0
            for word in message["content"].split(" "):
                spans.append(TokenSpan(word, number, start, start + len(word)))
                ids.append(WORDS.get(word, 3))
                start += len(word) + 1
        return EncodedChat(ids, spans, False)


class WordEngine:
    """The residual stream says which word each token is; later tokens know of earlier ones.

    Attributes:
        passes: numbers of conversations that were computed together.
        errors: raised by the first passes; None means success.
    """

    def __init__(self) -> None:
        self.passes: list[int] = []
        self.errors: list[Exception | None] = []

    def residual(self, sequences: Sequence[list[int]]) -> list[torch.Tensor]:
        self.passes.append(len(sequences))
        error = self.errors.pop(0) if self.errors else None
        if error:
            raise error
        return [0.1 + torch.nn.functional.one_hot(torch.tensor(ids), 10).float().cumsum(0) for ids in sequences]


def sense(slug: str, latent: int, cue: str) -> Sense:
    return Sense(slug, f"the {slug}", f"{{mention}} is of a {slug}.", frozenset(), 0.0, {latent: 9.0}, {cue: 9.0})


@pytest.fixture
def engine() -> WordEngine:
    return WordEngine()


@pytest.fixture
def inspector(engine: WordEngine) -> Inspector:
    """Reads "bank" by the words "river" and "money"; "sat" and "loan" tell what is meant."""
    concept = Concept("bank", "test", ("bank",), "rest", 1.0, None, 0.4, 0.7,
                      (sense("river", 0, "sat"), sense("money", 1, "loan")))  # fmt: skip
    view = CatalogView(
        "tiny", ModelFingerprint(weights="w", config="c", tokenizer="t", chat_template="h"), 0, "s",
        {n: Feature(n, f"f{n}", 0.1) for n in range(10)}, (concept,), {},
    )  # fmt: skip
    sae = JumpReLUSAE({"W_enc": torch.eye(10), "W_dec": torch.eye(10), "b_enc": torch.zeros(10),
                       "b_dec": torch.zeros(10), "threshold": torch.full((10,), 0.5)})  # fmt: skip
    return Inspector(Detector(view, WordEncoder(), 512), sae, engine)  # type: ignore[arg-type]


def asked(*texts: str, **options: Any) -> list[Any]:
    return [([{"role": "user", "content": text}], {"tokens": False, **options}) for text in texts]


PROMPTS = ["money money bank sat here", "nothing to read", "river bank loan please", "river bank sat here"]


def untimed(readings: Sequence[Any]) -> list[Any]:
    return [reading.model_copy(update={"timings_ms": {}}) for reading in readings]


def test_a_batch_reads_what_single_calls_read(inspector: Inspector, engine: WordEngine) -> None:
    together = inspector.inspect_batch(asked(*PROMPTS))
    assert engine.passes == [3]  # the prompt without a mention did not cost the model anything
    assert [[m.read_as for m in reading.misreads] for reading in together] == [["money"], [], ["river"], []]  # type: ignore[union-attr]
    alone = [inspector.inspect(messages, **options) for messages, options in asked(*PROMPTS)]
    assert untimed(together) == untimed(alone)
    assert all(set(reading.timings_ms) == {"plan", "features", "detect", "total"} for reading in together)  # type: ignore[union-attr]


@pytest.mark.parametrize(("limit", "passes"), [(None, [16, 4]), (1, [1] * 20), (7, [7, 7, 6]), (100, [20])])
def test_a_batch_is_computed_in_passes_of_at_most_the_limit(
    inspector: Inspector, engine: WordEngine, limit: int | None, passes: list[int]
) -> None:
    found = inspector.inspect_batch(asked(*["money bank sat"] * 20), limit=limit)
    assert engine.passes == passes
    assert [len(reading.misreads) for reading in found] == [1] * 20  # type: ignore[union-attr]


def test_a_bad_prompt_keeps_its_error_to_itself(inspector: Inspector, engine: WordEngine) -> None:
    found = inspector.inspect_batch(asked(PROMPTS[0], "overlong bank", PROMPTS[2]))
    assert [type(item) for item in found] == [Reading, InputError, Reading]
    assert engine.passes == [2]


def test_a_failed_pass_costs_the_prompts_of_that_pass_alone(inspector: Inspector, engine: WordEngine) -> None:
    engine.errors = [BOOM]
    found = inspector.inspect_batch(asked(PROMPTS[0], "overlong", PROMPTS[2], PROMPTS[3]), limit=3)
    assert [type(item) for item in found] == [EngineError, InputError, EngineError, Reading]


def test_a_batch_without_mentions_asks_no_model(inspector: Inspector, engine: WordEngine) -> None:
    found = inspector.inspect_batch(asked("nothing", "to read"))
    assert [len(reading.mentions) for reading in found] == [0, 0]  # type: ignore[union-attr]
    assert engine.passes == []


def test_options_hold_for_their_own_prompt(inspector: Inspector) -> None:
    plain, without = asked(PROMPTS[0]), asked(PROMPTS[0], without=frozenset({"bank"}))
    found = inspector.inspect_batch([*plain, *without])
    assert [len(reading.mentions) for reading in found] == [1, 0]  # type: ignore[union-attr]


TERMS = {
    "bank": {
        "meaning": "the river one",
        "otherwise": "the money one",
        "examples": ["river river bank", "a river bank", "the river bank sat"],
        "counterexamples": ["money money bank", "a money bank", "the money bank sat"],
    }
}


def test_prompts_of_a_batch_may_have_glossaries_which_are_compiled_once(
    inspector: Inspector, engine: WordEngine
) -> None:
    glossary = Glossary.from_dict(TERMS)
    found = inspector.inspect_batch(
        [*asked("money money bank"), *asked("money money bank", "river river bank", glossary=glossary)]
    )
    assert engine.passes == [12, 3]  # the term's sentences once, then the prompts
    flagged = [[misread.concept for misread in reading.misreads] for reading in found]  # type: ignore[union-attr]
    assert flagged == [[], ["glossary:bank"], []]


def test_a_term_that_nothing_tells_apart_is_unknown_and_costs_nobody_a_reading(
    inspector: Inspector, engine: WordEngine
) -> None:
    glossary = Glossary.from_dict({"zinc": {"meaning": "this", "otherwise": "that"}})  # the engine knows none of these
    found = inspector.inspect_batch(
        [*asked("zinc", "zinc money money bank sat here", glossary=glossary), *asked(PROMPTS[0])]
    )
    assert [len(reading.misreads) for reading in found] == [0, 1, 1]  # type: ignore[union-attr]
    first = found[0].mentions[0]  # type: ignore[union-attr]
    assert first.concept == "glossary:zinc"
    assert first.reading == {"meant": 0.5, "otherwise": 0.5}
    assert found[1].mentions[0] == first.model_copy(update={"text": "zinc"})  # type: ignore[union-attr]


def test_an_error_in_judging_a_prompt_is_its_own(inspector: Inspector, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = inspector.detector.reading

    def judged(plan: Any, features: Any) -> Reading:
        if "loan" in plan.messages[0]["content"]:
            raise BOOM
        return judge(plan, features)

    monkeypatch.setattr(inspector.detector, "reading", judged)
    found = inspector.inspect_batch(asked(*PROMPTS))
    assert [type(item) for item in found] == [Reading, Reading, EngineError, Reading]
    assert [len(item.misreads) for item in found if isinstance(item, Reading)] == [1, 0, 0]  # each its own features


def test_the_annotator_reads_batches_with_the_real_inspector(
    inspector: Inspector, engine: WordEngine, call: Call
) -> None:
    annotator = SAEAnnotator(source=CatalogSource(inspector), deadline=PATIENCE, grace=None)
    results = call(annotator, "batch", [*PROMPTS, "overlong bank"], config={"max_concurrency": 2})
    notes = ["bank is of a river.", None, "bank is of a money.", None, None]
    texts = [*PROMPTS, "overlong bank"]
    assert [result[0] for result in results] == [
        noted(text, *([note] if note else [])) for text, note in zip(texts, notes, strict=True)
    ]
    assert engine.passes == [1, 2]
    assert annotator.stats == Stats(4, 2, Counter({"InputError": 1}))
