"""Whatever the conversation: placing notes changes no input, and taking the notes away gives the input back."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    ChatMessage,
    HumanMessage,
    HumanMessageChunk,
    SystemMessage,
    ToolMessage,
)

from middleware.inputs import plain_text
from middleware.placement import INLINE_OPENING, SYSTEM_OPENING, place_notes
from middleware.types import Placement
from sae_runtime.detector.notes import NOTE_CLOSING, NOTE_OPENING
from sae_runtime.detector.results import Misread

MisreadAt = Callable[..., Misread]
Case = tuple[list[BaseMessage], int, list[tuple[int, int]]]

LIGHT = settings(max_examples=60, deadline=None, database=None, derandomize=True)
MEDIA: list[dict[str, object]] = [
    {"type": "image_url", "image_url": {"url": "https://example.org/river.png"}},
    {"type": "image", "base64": "aGk=", "mime_type": "image/png"},
    {"type": "input_audio", "input_audio": {"data": "aGk=", "format": "wav"}},
    {"type": "file", "file": {"filename": "bank.pdf", "file_data": "data:application/pdf;base64,aGk="}},
    {"type": "tool_use", "id": "t1", "name": "look_up", "input": {"text": "bank"}},
    {"type": "reasoning", "reasoning": "The bank?"},
]
EACH_PLACEMENT = pytest.mark.parametrize("placement", ["after", "inline", "system"])

# Texts are of any script. Notes carry two signs that the texts never have: they can be found again without doubt.
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="꧁꧂"), max_size=20)
words = st.builds(lambda a, b: f"{a}bänk 🏞️{b}", texts, texts)


def block_of(text: st.SearchStrategy[str]) -> st.SearchStrategy[object]:
    """A text block: a string, a dict, or a dict with a key that must survive."""
    cached = st.builds(lambda t: {"type": "text", "text": t, "cache_control": {"type": "ephemeral"}}, text)
    return st.one_of(text, st.builds(lambda t: {"type": "text", "text": t}, text), cached)


blocks = st.lists(st.one_of(block_of(texts), st.sampled_from(MEDIA)), max_size=3)
contents = st.one_of(texts, blocks)
contents_with_words = st.one_of(
    words, st.builds(lambda before, block, after: [*before, block, *after], blocks, block_of(words), blocks)
)
extras = st.fixed_dictionaries({}, optional={"id": st.just("m1"), "additional_kwargs": st.just({"k": [1]})})


def message_of(
    kinds: list[Callable[..., BaseMessage]], content: st.SearchStrategy[object]
) -> st.SearchStrategy[BaseMessage]:
    """A message of one of ``kinds``."""
    return st.builds(lambda kind, c, extra: kind(content=c, **extra), st.sampled_from(kinds), content, extras)


def user_in_chat(**fields: object) -> ChatMessage:
    """A user message of the free-role class."""
    return ChatMessage(role="user", **fields)  # type: ignore[arg-type]


def tool(**fields: object) -> ToolMessage:
    """The result of a tool."""
    return ToolMessage(tool_call_id="1", **fields)  # type: ignore[arg-type]


before = st.lists(message_of([HumanMessage, AIMessage, SystemMessage, tool], contents), max_size=3)
users = message_of([HumanMessage, HumanMessageChunk, user_in_chat], contents_with_words)
after = st.lists(message_of([AIMessage, AIMessageChunk, tool], contents), max_size=1)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """A conversation, the number of its last user message, and spans of mentions in that message's text."""
    earlier, user, later = draw(before), draw(users), draw(after)
    length = len(plain_text(user))
    span = st.tuples(st.integers(0, length - 1), st.integers(1, length)).filter(lambda pair: pair[0] < pair[1])
    spans = sorted(draw(st.lists(span, min_size=1, max_size=4)))
    return [*earlier, user, *later], len(earlier), spans


def misreads_of(case: Case, misread_at: MisreadAt) -> list[Misread]:
    """One misread per span, each with a note of its own."""
    messages, target, spans = case
    text = plain_text(messages[target])
    return [
        misread_at(text, start, end, message=target, note=f"꧁{number} означает реку «ß» 🌊꧂")
        for number, (start, end) in enumerate(spans)
    ]


def additions_of(misreads: list[Misread], placement: Placement) -> list[str]:
    """Every text that ``placement`` may add for ``misreads``."""
    notes = [misread.note for misread in misreads]
    if placement == "inline":
        return [INLINE_OPENING + note + NOTE_CLOSING for note in notes]
    opening = NOTE_OPENING if placement == "after" else "\n\n" + SYSTEM_OPENING
    return [opening + " ".join(notes) + NOTE_CLOSING]


def without(message: BaseMessage, additions: list[str]) -> BaseMessage:
    """``message`` with the additions cut out; a block that is nothing but an addition goes altogether."""
    pattern = re.compile("|".join(re.escape(addition) for addition in additions))
    if isinstance(message.content, str):
        return message.model_copy(update={"content": pattern.sub("", message.content)})
    kept: list[object] = []
    for block in message.content:
        if isinstance(block, str):
            kept.append(pattern.sub("", block))
        elif block.get("type") != "text":
            kept.append(block)
        elif block["text"] not in [addition.strip() for addition in additions]:
            kept.append({**block, "text": pattern.sub("", block["text"])})
    return message.model_copy(update={"content": kept})


@EACH_PLACEMENT
@LIGHT
@given(case=cases())
def test_inputs_are_never_mutated(case: Case, placement: Placement, misread_at: MisreadAt) -> None:
    messages, misreads = case[0], misreads_of(case, misread_at)
    same_messages, copies = list(messages), copy.deepcopy(messages)
    same_misreads = copy.deepcopy(misreads)
    result = place_notes(messages, misreads, placement).messages
    assert result is not messages
    assert len(messages) == len(same_messages)
    assert all(a is b for a, b in zip(messages, same_messages, strict=True))
    assert messages == copies
    assert [message.model_dump() for message in messages] == [message.model_dump() for message in copies]
    assert misreads == same_misreads


@EACH_PLACEMENT
@LIGHT
@given(case=cases())
def test_removing_the_notes_gives_back_the_input(case: Case, placement: Placement, misread_at: MisreadAt) -> None:
    messages, misreads = case[0], misreads_of(case, misread_at)
    additions = additions_of(misreads, placement)
    result = place_notes(messages, misreads, placement).messages
    added = "".join(plain_text(message) for message in result)
    assert all(added.count(misread.note) == 1 for misread in misreads)
    if placement == "system" and not isinstance(messages[0], SystemMessage):
        assert result.pop(0) == SystemMessage(additions[0].strip())
    restored = [without(message, additions) for message in result]
    assert restored == messages
    assert [type(message) for message in restored] == [type(message) for message in messages]
    assert [message.model_dump() for message in restored] == [message.model_dump() for message in messages]


@EACH_PLACEMENT
@LIGHT
@given(case=cases())
def test_other_messages_are_the_very_same_objects(case: Case, placement: Placement, misread_at: MisreadAt) -> None:
    messages, target, _ = case
    result = place_notes(messages, misreads_of(case, misread_at), placement).messages
    if placement == "system":
        target = 0 if isinstance(messages[0], SystemMessage) else -1
        result = result[1:] if target == -1 else result
    assert len(result) == len(messages)
    assert [i for i, (a, b) in enumerate(zip(result, messages, strict=True)) if a is not b] == [target] * (target >= 0)


@EACH_PLACEMENT
@LIGHT
@given(case=cases())
def test_the_places_are_where_the_notes_stand(case: Case, placement: Placement, misread_at: MisreadAt) -> None:
    misreads = misreads_of(case, misread_at)
    placed = place_notes(case[0], misreads, placement)
    texts_of = [plain_text(message) for message in placed.messages]
    assert [texts_of[place.message][place.start : place.end] for place in placed.places] == [
        place.note for place in placed.places
    ]
    assert sorted(place.note for place in placed.places) == sorted(misread.note for misread in misreads)
    assert (placed.notes, placed.left_out) == ([misread.note for misread in misreads], 0)


@LIGHT
@given(case=cases())
def test_after_keeps_everything_before_the_note(case: Case, misread_at: MisreadAt) -> None:
    messages, target, _ = case
    misreads = misreads_of(case, misread_at)
    (addition,) = additions_of(misreads, "after")
    result = place_notes(messages, misreads, "after").messages
    assert plain_text(result[target]) == plain_text(messages[target]) + addition


@LIGHT
@given(case=cases())
def test_inline_puts_each_note_right_behind_its_mention(case: Case, misread_at: MisreadAt) -> None:
    messages, target, _ = case
    misreads = misreads_of(case, misread_at)
    additions = additions_of(misreads, "inline")
    original = plain_text(messages[target])
    text = plain_text(place_notes(messages, misreads, "inline").messages[target])
    others = re.compile("|".join(re.escape(addition) for addition in additions))
    for misread, addition in zip(misreads, additions, strict=True):
        head, found, _ = text.partition(addition)
        assert found
        assert others.sub("", head) == original[: misread.end]


@EACH_PLACEMENT
@LIGHT
@given(messages=st.one_of(before, cases().map(lambda case: case[0])))
def test_without_misreads_the_messages_are_identical(messages: list[BaseMessage], placement: Placement) -> None:
    copies = copy.deepcopy(messages)
    result = place_notes(messages, [], placement).messages
    assert len(result) == len(messages)
    assert all(a is b for a, b in zip(result, messages, strict=True))
    assert messages == copies
