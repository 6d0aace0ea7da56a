"""Turns and choices: what both columns are sent, what choices do, what is said when the model is lost."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessageChunk
from openai import OpenAIError

from middleware import SAEAnnotator
from middleware.testing import FakeInspector
from ui.chat.conversation import Choices, Conversation, Exchange, run_turn

concepts = st.sampled_from(["bank", "mouse", "bass"])
senses = st.sampled_from(["one", "two"])
choices = st.builds(
    lambda picks, dropped: Choices(picks, frozenset(dropped) - picks.keys()),
    st.dictionaries(concepts, senses),
    st.frozensets(concepts),
)


class Model:
    """Answers with the last message in two pieces, and remembers what it was sent."""

    def __init__(self, *, lost: bool = False) -> None:
        self.sent: list[list[str]] = []
        self.lost = lost

    async def astream(self, messages: list[Any]) -> AsyncIterator[AIMessageChunk]:
        self.sent.append([str(message.content) for message in messages])
        yield AIMessageChunk("about ")
        if self.lost:
            raise OpenAIError("gone")
        yield AIMessageChunk(str(messages[-1].content).split()[0])
        count = {"input_tokens": 30, "output_tokens": 2, "total_tokens": 32}
        yield AIMessageChunk("", usage_metadata=count)  # type: ignore[arg-type]


async def last(history: Conversation, asked: Exchange, model: Model, **options: Any) -> Exchange:
    annotator = SAEAnnotator(source=FakeInspector({"bank": "River."}))
    turn = run_turn(annotator, model, history, asked, **{"compare": True, **options})  # type: ignore[arg-type]
    return [snapshot async for snapshot in turn][-1]


async def test_a_noted_prompt_is_answered_twice_and_a_quiet_one_once() -> None:
    model = Model()
    noted = await last(Conversation(), Exchange("bank it"), model)
    assert (noted.noted, noted.plain, noted.prompt_tokens) == ("about bank", "about bank", 30)
    assert sorted(len(sent[0]) for sent in model.sent)[0] == len("bank it")
    assert any("River." in sent[0] for sent in model.sent)
    quiet = await last(Conversation(), Exchange("hello"), Model())
    assert (quiet.plain, quiet.tokens_added) == (None, 0)
    assert (await last(Conversation(), Exchange("bank it"), Model(), compare=False)).plain is None


async def test_each_column_goes_on_with_its_own_answers() -> None:
    history = Conversation((Exchange("first", noted="with", plain="without"), Exchange("second", noted="same")))
    model = Model()
    turn = await last(history, Exchange("hello"), model)
    assert turn.plain is not None  # the columns have parted before
    assert sorted(sent[1] for sent in model.sent) == ["with", "without"]
    assert all(sent[2:] == ["second", "same", "hello"] for sent in model.sent)


async def test_a_lost_model_is_said_and_what_came_is_kept() -> None:
    turn = await last(Conversation(), Exchange("hello"), Model(lost=True))
    assert turn.noted == "about "
    assert "try again" in turn.failed


async def test_a_turn_without_an_answer_is_not_sent_along_later() -> None:
    history = Conversation((Exchange("first", failed="lost"),))
    model = Model()
    await last(history, Exchange("hello"), model)
    assert model.sent == [["hello"]]


async def test_choices_reach_the_reading() -> None:
    fake = FakeInspector({"bank": "River."})
    history = Conversation(always=Choices({"bass": "fish"}, frozenset({"mouse"})))
    asked = Exchange("bank it", choices=Choices({"mouse": "animal"}, frozenset({"bank"})))
    async for _ in run_turn(SAEAnnotator(source=fake), Model(), history, asked, compare=True):  # type: ignore[arg-type]
        pass
    (request,) = fake.requests
    assert request.picks == {"bass": "fish", "mouse": "animal"}
    assert request.without == {"bank"}


@given(choices, concepts, senses)
def test_a_choice_replaces_the_one_before(before: Choices, concept: str, sense: str) -> None:
    assert before.pick(concept, sense).of(concept) == sense
    assert before.drop(concept).of(concept) == ""
    assert before.forget(concept).of(concept) is None
    assert before.drop(concept).pick(concept, sense) == before.pick(concept, sense)


@given(choices, choices, concepts)
def test_a_choice_for_a_message_goes_before_one_for_the_conversation(
    own: Choices, general: Choices, concept: str
) -> None:
    expected = own.of(concept) if own.of(concept) is not None else general.of(concept)
    assert own.over(general).of(concept) == expected


@pytest.mark.parametrize("index", [0, 1, 2])
def test_a_conversation_is_cut_before_a_turn(index: int) -> None:
    turns = tuple(Exchange(name) for name in "abc")
    assert Conversation(turns).before(index).exchanges == turns[:index]
