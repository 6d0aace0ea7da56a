"""The chat's handlers: forged and late events, one writer per session, what the columns show."""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest

from middleware import SAEAnnotator
from middleware.testing import FakeInspector
from sae_runtime.catalog.view import CatalogView
from sae_runtime.paths import CATALOG_FILE, artefacts_for
from ui.backend import Backend
from ui.chat.conversation import Conversation, Exchange
from ui.chat.handlers import Handlers, messages, turn_number
from ui.chat.lookup import Lookup

ALICE: Any = SimpleNamespace(session_hash="a", username=None)
BOB: Any = SimpleNamespace(session_hash="b", username=None)
SKIPPED = gr.skip()


class Model:
    """Says a word at a time."""

    async def astream(self, messages: list[Any]) -> AsyncIterator[Any]:
        for text in ("one ", "two ", "three"):
            yield SimpleNamespace(text=text, usage_metadata=None)


@pytest.fixture
def handlers() -> Handlers:
    folder = artefacts_for("smollm2-135m-instruct")
    lookup = Lookup(CatalogView.load(folder / CATALOG_FILE), folder / CATALOG_FILE)
    annotator = SAEAnnotator(source=FakeInspector({"mouse": "Animal."}))
    made = Handlers(annotator, Backend("http://127.0.0.1:9", "m"), lookup, lambda user: None, 10)
    made.model = Model()  # type: ignore[assignment]
    return made


def event(data: Any) -> Any:
    return gr.EventData(None, data)


async def last(views: AsyncIterator[tuple[Any, ...]]) -> Conversation | None:
    found = [view[0] async for view in views if isinstance(view[0], Conversation)]
    return found[-1] if found else None


TALK = Conversation((Exchange("a mouse", noted="yes", plain="no"), Exchange("hello", noted="hi")))


@pytest.mark.parametrize(
    "data",
    [
        None, [], "x", {}, {"turn": 2}, {"turn": -1}, {"turn": "0"}, {"turn": True},
        {"turn": 0, "action": "use", "concept": "mouse", "sense": "sofa"},
        {"turn": 0, "action": "always", "concept": "<b>", "sense": "animal"},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.filterwarnings("ignore::UserWarning")
async def test_events_that_no_button_sends_change_nothing(handlers: Handlers, data: Any) -> None:
    assert await last(handlers.choose(TALK, True, ALICE, event(data))) is None


async def test_a_choice_answers_its_own_turn_and_drops_what_came_after_it(handlers: Handlers) -> None:
    data = {"turn": 0, "action": "use", "concept": "mouse", "sense": "animal"}
    found = await last(handlers.choose(TALK, True, ALICE, event(data)))
    assert found is not None
    (exchange,) = found.exchanges
    assert (exchange.prompt, exchange.choices.picks) == ("a mouse", {"mouse": "animal"})
    always = await last(handlers.choose(TALK, True, ALICE, event({**data, "action": "always"})))
    assert always is not None
    assert always.always.picks == {"mouse": "animal"}


async def test_of_two_turns_at_once_the_newer_one_writes(handlers: Handlers) -> None:
    first = handlers.ask("a mouse", Conversation(), "", True, ALICE)
    other = handlers.ask("hello", Conversation(), "", True, BOB)
    await anext(first)
    await anext(other)
    newer = await last(handlers.ask("second", Conversation(), "", True, ALICE))
    assert newer is not None
    assert [view async for view in first] == []
    assert await last(other) is not None  # other people's turns go on


async def test_a_cleared_or_stopped_turn_does_not_come_back(handlers: Handlers) -> None:
    for end in (lambda: handlers.cleared(ALICE), lambda: handlers.stopped(TALK, ALICE)):
        turn = handlers.ask("a mouse", Conversation(), "", True, ALICE)
        await anext(turn)
        end()
        assert [view async for view in turn] == []


def test_stopping_before_the_reading_says_so(handlers: Handlers) -> None:
    stopped, _, _, pane, *_ = handlers.stopped(Conversation((Exchange("x"),)), ALICE)
    assert stopped.exchanges[0].failed
    assert "Stopped before it was read" in pane


async def test_only_a_sent_message_empties_the_box(handlers: Handlers) -> None:
    sent = [view async for view in handlers.ask("hello", Conversation(), "", True, ALICE)]
    assert sent[0][-1]["value"] == ""
    assert all("value" not in view[-1] for view in sent[1:])
    event = gr.RetryData(None, {"index": 0, "value": ""})
    again = [view async for view in handlers.again(TALK, True, ALICE, event)]
    assert all("value" not in view[-1] for view in again)


@pytest.mark.parametrize(
    ("index", "turn"), [(0, 0), (1, 0), (2, 1), (3, 1), ([2, 0], 1), (4, None), (-1, None), ("x", None), ([], None)]
)
def test_messages_belong_to_turns(index: Any, turn: int | None) -> None:
    assert turn_number(TALK, index) == turn


def test_columns_differ_where_answers_do() -> None:
    assert [row["content"] for row in messages(TALK, notes=True)] == ["a mouse", "yes", "hello", "hi"]
    assert [row["content"] for row in messages(TALK, notes=False)] == ["a mouse", "no", "hello", "hi"]
