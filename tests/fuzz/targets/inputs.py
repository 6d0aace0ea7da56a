"""Any value becomes messages or an InputError; notes leave the input as it was, and taking them away gives it back."""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import strategies as st
from langchain_core.messages import BaseMessage, SystemMessage

from middleware.inputs import is_user, last_user, plain_text, text_parts, to_chat, to_messages
from middleware.placement import place_notes
from middleware.types import Placement
from sae_runtime.detector.notes import INLINE_OPENING, NOTE_CLOSING, NOTE_OPENING, SYSTEM_OPENING
from sae_runtime.detector.results import Misread
from sae_runtime.errors import InputError

from ..conversations import built, inputs

Case = tuple[Any, Placement, list[tuple[int, int]]]

CASES: st.SearchStrategy[Case] = st.tuples(
    inputs,
    st.sampled_from(["after", "inline", "system"]),
    st.lists(st.tuples(st.integers(0, 400), st.integers(1, 400)), min_size=1, max_size=3),
)
_MARK = "zqzq"  # hardly ever in an input, so that notes can be found again


def check(case: Case) -> None:
    """See the module."""
    described, placement, spans = case
    value = built(described)
    try:
        messages = to_messages(value)
    except InputError:
        return
    assert all(isinstance(message, BaseMessage) for message in messages)
    chat = to_chat(messages)
    for message, plain in zip(messages, chat, strict=True):
        assert isinstance(plain["role"], str) and plain["content"] == plain_text(message)
        for part in text_parts(message):
            assert plain["content"][part.start :].startswith(part.text), "a part is not where it says"
    target = last_user(messages)
    if target is None or _MARK in plain_text(messages[target]):
        return
    assert is_user(messages[target]) and not any(map(is_user, messages[target + 1 :])), "not the last user message"
    _placed(messages, target, placement, spans)


def _placed(messages: list[BaseMessage], target: int, placement: Placement, spans: list[tuple[int, int]]) -> None:
    text = plain_text(messages[target])
    misreads = [_misread(number, *span, target, text) for number, span in enumerate(spans)]
    copies = copy.deepcopy(messages)
    placed = place_notes(messages, misreads, placement)
    result = list(placed.messages)
    assert messages == copies, "the input was changed"
    for place in placed.places:
        assert plain_text(result[place.message])[place.start : place.end] == place.note, "a note is not where it says"
    assert sorted(place.note for place in placed.places) == sorted(placed.notes), "a note without a place"
    if placement == "system":
        if isinstance(messages[0], SystemMessage):
            target = 0
        else:
            (note,) = _additions(misreads, placement)
            assert result.pop(0) == SystemMessage(note.strip()), "not a system message of its own"
            target = -1
    assert len(result) == len(messages)
    for index, (new, old) in enumerate(zip(result, messages, strict=True)):
        if index != target:
            assert new is old, "another message was touched"
            continue
        assert type(new) is type(old)
        restored = _without(plain_text(new), _additions(misreads, placement))
        assert restored == plain_text(old), "the text is not the same without its notes"
        assert new.model_copy(update={"content": ""}) == old.model_copy(update={"content": ""}), (
            "more than text changed"
        )


def _misread(number: int, start: int, end: int, target: int, text: str) -> Misread:
    start = start % len(text)
    end = start + 1 + end % (len(text) - start)
    return Misread(
        concept="c", text=text[start:end], message=target, start=start, end=end, read_as="a", intended="b",
        p_read_as=0.9, p_intended=0.9, evidence=[], note=f"{_MARK}{number}{_MARK}", features=[],
    )  # fmt: skip


def _additions(misreads: list[Misread], placement: Placement) -> list[str]:
    """Every text that ``placement`` adds for ``misreads``."""
    notes = [misread.note for misread in misreads]
    if placement == "inline":
        return [INLINE_OPENING + note + NOTE_CLOSING for note in notes]
    opening = NOTE_OPENING if placement == "after" else "\n\n" + SYSTEM_OPENING
    return [opening + " ".join(notes) + NOTE_CLOSING]


def _without(text: str, additions: list[str]) -> str:
    """``text`` without the additions, each of which must be there once; one may be a block of its own."""
    for addition in additions:
        found = addition if addition in text else addition.strip()
        assert text.count(found) == 1, "a note is not there once"
        text = text.replace(found, "")
    return text
