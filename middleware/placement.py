"""Placing notes into messages. Inputs are never changed; a message that receives a note is replaced by a copy."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from langchain_core.messages import BaseMessage, SystemMessage

from middleware.inputs import TextPart, last_user, text_parts
from middleware.types import Placement
from sae_runtime.detector.notes import (
    INLINE_OPENING,
    NOTE_CLOSING,
    NOTE_OPENING,
    SYSTEM_OPENING,
    ChosenNotes,
    choose_notes,
    framed_notes,
    note_places,
)
from sae_runtime.detector.results import Misread, PlacedNote


@dataclass(frozen=True)
class Placed:
    """Messages with notes.

    Attributes:
        messages: the conversation.
        notes: the note of each misread whose note is given, in order of the mentions.
        places: where the notes stand in the texts of ``messages``; texts of one message are joined by line ends.
        left_out: how many notes were not given, see :func:`~sae_runtime.detector.notes.choose_notes`.
    """

    messages: list[BaseMessage]
    notes: list[str] = field(default_factory=list)
    places: list[PlacedNote] = field(default_factory=list)
    left_out: int = 0


def place_notes(messages: Sequence[BaseMessage], misreads: Sequence[Misread], placement: Placement) -> Placed:
    """Messages with one note per misread.

    ``after`` (default of the annotator) appends all notes to the last user text, so that everything before stays in
    the server's prefix cache; ``inline`` puts each note behind its mention; ``system`` puts them into the system
    message, which is made when there is none. Equal notes are given once (``inline``: once per mention).

    Raises:
        IndexError, ValueError: a misread names a message or a place that does not exist.
    """
    result = list(messages)
    chosen = choose_notes(misreads, repeat=placement == "inline")
    if not chosen.misreads:
        return Placed(result, left_out=chosen.left_out)
    place = {"after": _after, "inline": _inline, "system": _system}[placement]
    places = place(result, chosen)
    return Placed(result, [misread.note for misread in chosen.misreads], places, chosen.left_out)


def _after(messages: list[BaseMessage], chosen: ChosenNotes) -> list[PlacedNote]:
    target = last_user(messages)
    if target is None:
        target = chosen.misreads[-1].message
    return _append(messages, target, NOTE_OPENING, chosen.notes)


def _system(messages: list[BaseMessage], chosen: ChosenNotes) -> list[PlacedNote]:
    if messages and isinstance(messages[0], SystemMessage):
        return _append(messages, 0, "\n\n" + SYSTEM_OPENING, chosen.notes)
    messages.insert(0, SystemMessage(framed_notes(SYSTEM_OPENING, chosen.notes)))
    return note_places(chosen.notes, 0, len(SYSTEM_OPENING))


def _inline(messages: list[BaseMessage], chosen: ChosenNotes) -> list[PlacedNote]:
    """Each note behind its mention, from the back: earlier places stay valid."""
    before = {misread.message: text_parts(messages[misread.message]) for misread in chosen.misreads}
    added: list[tuple[int, int, str]] = []  # message, place in its text as it was, note
    for misread in sorted(chosen.misreads, key=lambda item: -item.end):
        number, parts = misread.message, before[misread.message]
        index = max(index for index, part in enumerate(parts) if part.start <= misread.end)
        place = min(misread.end - parts[index].start, len(parts[index].text))
        part = text_parts(messages[number])[index]  # with the notes that it has got already, which stand further behind
        messages[number] = _insert(messages[number], part, place, INLINE_OPENING + misread.note + NOTE_CLOSING)
        added.append((number, parts[index].start + place, misread.note))
    places: list[PlacedNote] = []
    longer: defaultdict[int, int] = defaultdict(int)  # by how much each message has grown, up to the place
    for message, place, note in reversed(added):
        places += note_places([note], message, place + longer[message] + len(INLINE_OPENING))
        longer[message] += len(INLINE_OPENING) + len(note) + len(NOTE_CLOSING)
    return sorted(places, key=lambda place: (place.message, place.start))


def _append(messages: list[BaseMessage], target: int, opening: str, notes: list[str]) -> list[PlacedNote]:
    """Put ``notes`` in one frame at the end of a message's text, and say where they stand."""
    message, addition = messages[target], framed_notes(opening, notes)
    parts = text_parts(message)
    if not parts:  # nothing but images or tool calls: the notes become a text block of their own
        content = [*message.content, {"type": "text", "text": addition.strip()}]
        messages[target] = message.model_copy(update={"content": content})
        return note_places(notes, target, len(opening.lstrip()))
    last = parts[-1]
    messages[target] = _insert(message, last, len(last.text), addition)
    return note_places(notes, target, last.start + len(last.text) + len(opening))


def _insert(message: BaseMessage, part: TextPart, place: int, addition: str) -> BaseMessage:
    """A copy of ``message`` with ``addition`` at character ``place`` of one part of its text."""
    text = part.text[:place] + addition + part.text[place:]
    content = message.content
    if part.block is None or isinstance(content, str):
        return message.model_copy(update={"content": text})
    blocks = list(content)
    old = blocks[part.block]
    blocks[part.block] = text if isinstance(old, str) else {**old, "text": text}
    return message.model_copy(update={"content": blocks})
