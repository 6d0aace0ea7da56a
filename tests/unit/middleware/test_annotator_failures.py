"""When the reading fails: the untouched prompt goes on, the bypass is counted and logged, the circuit opens."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage

from middleware import SAEAnnotator
from sae_runtime.errors import (
    CatalogError,
    EngineError,
    InputError,
    InspectionTimeout,
    PackError,
    SensecheckError,
    ServerError,
)

Call = Callable[..., Any]

TEXT = "I sat on the bank."
FAILURES = [
    pytest.param(InspectionTimeout("Too slow.", "Wait."), "timeout", id="timeout"),
    pytest.param(ServerError("Gone.", "Start it."), "ServerError", id="server"),
    pytest.param(EngineError("Broken."), "EngineError", id="engine"),
    pytest.param(CatalogError("Locked."), "CatalogError", id="catalog"),
    pytest.param(SensecheckError("Odd."), "SensecheckError", id="root"),
    pytest.param(InputError("Too long."), "InputError", id="input"),
    pytest.param(RuntimeError("secret"), "RuntimeError", id="runtime"),
    pytest.param(KeyError("k"), "KeyError", id="key"),
    pytest.param(TimeoutError(), "TimeoutError", id="foreign-timeout"),
    pytest.param(MemoryError(), "MemoryError", id="memory"),
]
BOOM = EngineError("Broken.", "Mend it.")
INPUT_BOOM = InputError("Too long.", "Shorten it.")


@pytest.mark.parametrize(("error", "reason"), FAILURES)
def test_the_untouched_messages_go_on(scripted: Any, call: Call, error: Exception, reason: str) -> None:
    annotator = SAEAnnotator(source=scripted(then=error))
    messages = [SystemMessage("s"), HumanMessage([{"type": "text", "text": TEXT}])]
    result = call(annotator, "invoke", messages)
    assert len(result) == 2
    assert all(a is b for a, b in zip(result, messages, strict=True))
    assert annotator.stats.bypassed == Counter({reason: 1})
    assert (annotator.stats.inspected, annotator.stats.flagged) == (0, 0)


@pytest.mark.parametrize(("error", "reason"), FAILURES)
def test_annotate_tells_the_reason(scripted: Any, call: Call, error: Exception, reason: str) -> None:
    result = call(SAEAnnotator(source=scripted(then=error)), "annotate", TEXT)
    assert result.messages == [HumanMessage(TEXT)]
    assert (result.notes, result.reading, result.bypass) == ([], None, reason)


@pytest.mark.parametrize(("error", "reason"), FAILURES)
def test_on_error_raise_raises_and_still_counts(scripted: Any, call: Call, error: Exception, reason: str) -> None:
    annotator = SAEAnnotator(source=scripted(then=error), on_error="raise")
    with pytest.raises(type(error)) as caught:
        call(annotator, "invoke", TEXT)
    assert caught.value is error
    assert annotator.stats.bypassed == Counter({reason: 1})


def test_a_bypass_is_logged_with_its_reason_and_remedy(
    scripted: Any, call: Call, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="sensecheck"):
        call(SAEAnnotator(source=scripted(then=InspectionTimeout("Too slow.", "Wait."))), "invoke", TEXT)
    assert [(r.name, r.levelname, r.getMessage()) for r in caplog.records] == [
        ("sensecheck", "WARNING", "inspection bypassed (timeout): Too slow. Wait.")
    ]


def test_the_log_of_a_foreign_error_names_its_class_only(
    scripted: Any, call: Call, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="sensecheck"):
        call(SAEAnnotator(source=scripted(then=RuntimeError(f"prompt was: {TEXT}"))), "invoke", TEXT)
    (record,) = caplog.records
    assert "RuntimeError" in record.getMessage()
    assert TEXT not in record.getMessage()


def test_a_reading_that_succeeds_logs_nothing(scripted: Any, call: Call, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="sensecheck"):
        call(SAEAnnotator(source=scripted()), "invoke", TEXT)
    assert caplog.records == []


def test_a_chain_answers_although_the_reading_fails(scripted: Any, call: Call) -> None:
    chain = SAEAnnotator(source=scripted(then=BOOM)) | FakeListChatModel(responses=["Wet feet."])
    assert call(chain, "invoke", TEXT).content == "Wet feet."


def test_a_batch_counts_each_failure(scripted: Any, call: Call) -> None:
    source = scripted(BOOM, None, InspectionTimeout("Too slow."))
    annotator = SAEAnnotator(source=source)
    assert len(call(annotator, "batch", [TEXT] * 4, config={"max_concurrency": 1})) == 4
    assert annotator.stats.bypassed == Counter({"EngineError": 1, "timeout": 1})
    assert (annotator.stats.inspected, annotator.stats.flagged) == (2, 2)


@pytest.mark.parametrize(
    "messages",
    [[], [SystemMessage("s")], [AIMessage("a")], [HumanMessage("")], [HumanMessage("  \n")],
     [HumanMessage([{"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}])]],
    ids=["none", "system", "assistant", "empty", "blank", "image"],
)  # fmt: skip
def test_without_user_text_the_messages_pass(scripted: Any, call: Call, messages: list[BaseMessage]) -> None:
    source = scripted()
    annotator = SAEAnnotator(source=source)
    result = call(annotator, "invoke", messages)
    assert len(result) == len(messages)
    assert all(a is b for a, b in zip(result, messages, strict=True))
    assert annotator.stats.bypassed == Counter({"InputError": 1})
    assert source.calls == []


@pytest.mark.parametrize("on_error", ["pass", "raise"])
def test_what_no_chat_model_takes_is_always_an_error(scripted: Any, call: Call, on_error: Any) -> None:
    annotator = SAEAnnotator(source=scripted(), on_error=on_error)
    with pytest.raises(InputError):
        call(annotator, "invoke", 42)
    assert annotator.stats.bypassed == Counter()


@pytest.mark.parametrize("error", [BOOM, InspectionTimeout("Too slow."), RuntimeError("boom")], ids=repr)
def test_the_circuit_opens_after_five_failures(scripted: Any, call: Call, error: Exception) -> None:
    source = scripted(then=error)
    annotator = SAEAnnotator(source=source)
    reasons = [call(annotator, "annotate", TEXT).bypass for _ in range(7)]
    assert reasons[:5] == [reasons[0]] * 5
    assert reasons[5:] == ["circuit open"] * 2
    assert len(source.calls) == 5
    assert annotator.stats.bypassed == Counter({reasons[0]: 5, "circuit open": 2})


def test_a_success_starts_the_count_anew(scripted: Any, call: Call) -> None:
    source = scripted(*[BOOM] * 4, None, *[BOOM] * 4, None)
    annotator = SAEAnnotator(source=source)
    assert [call(annotator, "annotate", TEXT).bypass for _ in range(10)] == [*["EngineError"] * 4, None] * 2


@pytest.mark.parametrize("error", [INPUT_BOOM, PackError("Bad.")], ids=repr)
def test_input_errors_never_open_the_circuit(scripted: Any, call: Call, error: Exception) -> None:
    source = scripted(*[error] * 8)
    annotator = SAEAnnotator(source=source)
    assert [call(annotator, "annotate", TEXT).bypass for _ in range(9)] == [*[type(error).__name__] * 8, None]


def test_a_prompt_without_user_text_does_not_hide_that_the_source_is_down(scripted: Any, call: Call) -> None:
    # It never reached the source: five failures in a row are still five failures in a row.
    source = scripted(then=BOOM)
    annotator = SAEAnnotator(source=source)
    for prompt in [TEXT, "", TEXT, "", TEXT, "", TEXT, "", TEXT]:
        call(annotator, "invoke", prompt)
    assert call(annotator, "annotate", TEXT).bypass == "circuit open"
    assert len(source.calls) == 5


def test_each_annotator_has_its_own_circuit(scripted: Any, call: Call) -> None:
    broken, healthy = SAEAnnotator(source=scripted(then=BOOM)), SAEAnnotator(source=scripted())
    for _ in range(6):
        call(broken, "invoke", TEXT)
    assert call(healthy, "annotate", TEXT).bypass is None
    assert healthy.stats.bypassed == Counter()


def test_the_circuit_closes_when_the_source_has_healed(
    scripted: Any, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("middleware.policy.BREAKER_SECONDS", -1.0)  # the pause is over at once
    source = scripted(*[BOOM] * 5)
    annotator = SAEAnnotator(source=source)
    assert [call(annotator, "annotate", TEXT).bypass for _ in range(7)] == [*["EngineError"] * 5, None, None]


def test_an_open_circuit_raises_an_error_of_this_project(scripted: Any, call: Call) -> None:
    annotator = SAEAnnotator(source=scripted(then=BOOM), on_error="raise")
    for _ in range(5):
        with pytest.raises(EngineError):
            call(annotator, "invoke", TEXT)
    with pytest.raises(SensecheckError):
        call(annotator, "invoke", TEXT)
    assert annotator.stats.bypassed["circuit open"] == 1


async def test_cancelled_calls_are_no_failures_of_the_source(scripted: Any) -> None:
    source = scripted()
    read = source.ainspect
    entered = asyncio.Event()

    async def never(*args: Any, **options: Any) -> None:
        entered.set()
        await asyncio.Event().wait()

    source.ainspect = never
    annotator = SAEAnnotator(source=source)
    for _ in range(5):  # five users close their browser
        entered.clear()
        task = asyncio.create_task(annotator.ainvoke(TEXT))
        await entered.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    source.ainspect = read
    assert (await annotator.aannotate(TEXT)).bypass is None


def test_a_reading_that_does_not_fit_the_prompt_lets_it_pass(
    scripted: Any, misread_at: Any, reading_of: Any, call: Call
) -> None:
    class Stranger(scripted):  # type: ignore[misc]
        def inspect(self, *args: Any, **options: Any) -> Any:
            return reading_of([misread_at(TEXT, 13, 17, message=7)])  # there is one message only

    annotator = SAEAnnotator(source=Stranger(), placement="inline")
    message = HumanMessage(TEXT)
    (result,) = call(annotator, "invoke", [message])
    assert result is message
    assert sum(annotator.stats.bypassed.values()) == 1


@pytest.mark.parametrize("place", [{"message": 7}, {"message": 0, "start": -9, "end": -5}], ids=["message", "place"])
def test_a_reading_that_does_not_fit_the_prompt_is_an_error_of_this_project(
    scripted: Any, misread_at: Any, reading_of: Any, call: Call, place: dict[str, int]
) -> None:
    """Found by fuzzing: with ``on_error="raise"`` an IndexError or ValueError left the annotator."""

    class Stranger(scripted):  # type: ignore[misc]
        def inspect(self, *args: Any, **options: Any) -> Any:
            return reading_of([misread_at(TEXT, 13, 17).model_copy(update=place)])

    annotator = SAEAnnotator(source=Stranger(), placement="inline", on_error="raise")
    with pytest.raises(SensecheckError, match="does not fit"):
        call(annotator, "invoke", TEXT)
    assert sum(annotator.stats.bypassed.values()) == 1
