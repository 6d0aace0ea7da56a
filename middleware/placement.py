"""Placing notes into messages. Inputs are never changed; a message that receives a note is replaced by a copy."""

from __future__ import annotations

from collections.abc import Sequence

from langchain_core.messages import BaseMessage, SystemMessage

from middleware.inputs import last_user, text_parts
from middleware.types import Placement
from sae_runtime.detector.notes import NOTE_CLOSING, joined_notes
from sae_runtime.detector.results import Misread

SYSTEM_OPENING = "[Note on the wording of the user's message: "
INLINE_OPENING = " [Note: "


def place_notes(
    messages: Sequence[BaseMessage], misreads: Sequence[Misread], placement: Placement
) -> list[BaseMessage]:
    """Messages with one note per misread.

    ``after`` (default of the annotator) appends all notes to the last user text, so that everything before stays in
    the server's prefix cache; ``inline`` puts each note behind its mention; ``system`` puts them into the system
    message, which is made when there is none. Equal notes are given once (``inline``: once per mention).
    """
    result = list(messages)
    if not misreads:
        return result
    notes = list(dict.fromkeys(misread.note for misread in misreads))
    if placement == "system":
        text = SYSTEM_OPENING + " ".join(notes) + NOTE_CLOSING
        if result and isinstance(result[0], SystemMessage):
            result[0] = _insert(result[0], None, "\n\n" + text)
        else:
            result.insert(0, SystemMessage(text))
    elif placement == "inline":
        for misread in sorted(misreads, key=lambda item: -item.end):  # from the back: earlier places stay valid
            note = INLINE_OPENING + misread.note + NOTE_CLOSING
            result[misread.message] = _insert(result[misread.message], misread.end, note)
    else:
        target = last_user(result)
        if target is None:
            target = misreads[-1].message
        result[target] = _insert(result[target], None, joined_notes(notes))
    return result


def _insert(message: BaseMessage, at: int | None, addition: str) -> BaseMessage:
    """A copy of ``message`` with ``addition`` at position ``at`` of its joined text (None: at the end of its text)."""
    parts = text_parts(message)
    content = message.content
    if not parts:  # nothing but images or tool calls: the note becomes a text block of its own
        return message.model_copy(update={"content": [*content, {"type": "text", "text": addition.strip()}]})
    part = parts[-1] if at is None else max((p for p in parts if p.start <= at), key=lambda p: p.start)
    place = len(part.text) if at is None else min(at - part.start, len(part.text))
    text = part.text[:place] + addition + part.text[place:]
    if part.block is None or isinstance(content, str):
        return message.model_copy(update={"content": text})
    blocks = list(content)
    old = blocks[part.block]
    blocks[part.block] = text if isinstance(old, str) else {**old, "text": text}
    return message.model_copy(update={"content": blocks})
