"""Notes as they stand in a prompt. Catalog, prompt and server are untrusted: a fixed frame, caps, inert text.

A note is attributable: nothing in it closes its frame or opens another one, and :class:`~.results.PlacedNote` says where
it stands. Text of the prompt that looks like a frame is found by :mod:`~.imitations` and left as it is.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sae_runtime.catalog.packs import PLACEHOLDER
from sae_runtime.detector.context import PICKED
from sae_runtime.detector.results import Misread, PlacedNote

MAX_NOTE = 240
MAX_MENTION = 60
MAX_NOTES = 16
"""Different notes that one prompt is given at most; with a note at every mention, notes."""
MAX_NOTES_LENGTH = 2000
"""Characters of all notes that one prompt is given, without their frames: some 500 tokens."""

# The frames. Behind the user's text, in the system message, behind a mention.
NOTE_OPENING = "\n\n[Note on the wording above: "
SYSTEM_OPENING = "[Note on the wording of the user's message: "
INLINE_OPENING = " [Note: "
NOTE_CLOSING = "]"

# Square brackets, and what may be taken for them.
OPENING_BRACKETS = "[⁅❲⟦⟬⦋⦍⦏⦗〔〖〘〚【﹇﹝［"
CLOSING_BRACKETS = "]⁆❳⟧⟭⦌⦎⦐⦘〕〗〙〛】﹈﹞］"
_ROUND = str.maketrans(dict.fromkeys(OPENING_BRACKETS, "(") | dict.fromkeys(CLOSING_BRACKETS, ")"))

# Tokens of common chat templates: <|im_end|>, <s>, [INST], <start_of_turn>, ...
_TEMPLATE_TOKEN = re.compile(
    r"<\|[^|<>]{0,40}\|>|</?s>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>|<\|?/?think\|?>", re.I
)


@dataclass(frozen=True)
class ChosenNotes:
    """The notes that a prompt is given.

    Attributes:
        misreads: those whose notes are given, in order of their mentions; their notes are inert.
        left_out: how many different notes (with ``repeat``: how many notes) are not given.
    """

    misreads: list[Misread]
    left_out: int

    @property
    def notes(self) -> list[str]:
        """The different notes, in order of their first mention."""
        return list(dict.fromkeys(misread.note for misread in self.misreads))


@dataclass(frozen=True)
class NotedChat:
    """A conversation with its notes, where they stand in it, and how many were left out."""

    messages: list[dict[str, Any]]
    places: list[PlacedNote]
    left_out: int


def choose_notes(misreads: Sequence[Misread], *, repeat: bool = False) -> ChosenNotes:
    """The notes to give, within :data:`MAX_NOTES` and :data:`MAX_NOTES_LENGTH`.

    Senses that the user picked come first, then what is most surely misread (the product of both probabilities), then what
    stands first; the first note that does not fit, and all after it, are left out. Equal notes count once.

    Args:
        misreads: of one reading, from any source: what their notes hold is made inert here once more.
        repeat: a note is given at each mention, so that equal ones count each time.
    """
    given: set[str] = set()
    left: set[str] = set()
    kept: list[int] = []
    count = length = missed = 0
    inert = [misread.model_copy(update={"note": inert_note(misread.note)}) for misread in misreads]
    for place in sorted(range(len(inert)), key=lambda place: _rank(inert[place])):
        note = inert[place].note
        if note in given and not repeat:
            kept.append(place)
        elif note and not missed and count < MAX_NOTES and length + len(note) <= MAX_NOTES_LENGTH:
            kept.append(place)
            given.add(note)
            count, length = count + 1, length + len(note)
        else:
            left.add(note)
            missed += 1
    return ChosenNotes([inert[place] for place in sorted(kept)], missed if repeat else len(left))


def _rank(misread: Misread) -> tuple[bool, float, int, int]:
    return (PICKED not in misread.evidence, -misread.p_read_as * misread.p_intended, misread.message, misread.start)


def joined_notes(notes: Iterable[str]) -> str:
    """What is appended to a text for ``notes``; equal ones are given once."""
    return framed_notes(NOTE_OPENING, notes)


def framed_notes(opening: str, notes: Iterable[str]) -> str:
    """Different ``notes`` in one frame."""
    return opening + " ".join(dict.fromkeys(notes)) + NOTE_CLOSING


def note_places(notes: Iterable[str], message: int, start: int) -> list[PlacedNote]:
    """Where the different ``notes`` of one frame stand, the first at character ``start`` of message number ``message``."""
    places = []
    for note in dict.fromkeys(notes):
        places.append(PlacedNote(note=note, message=message, start=start, end=start + len(note)))
        start += len(note) + 1
    return places


def annotate_after(messages: Sequence[dict[str, Any]], misreads: Sequence[Misread]) -> NotedChat:
    """Chat messages with notes after the last user text (or the last text at all); the input is left alone."""
    chosen = choose_notes(misreads)
    result = list(messages)
    if not chosen.notes:
        return NotedChat(result, [], chosen.left_out)
    users = [index for index, message in enumerate(result) if message["role"] == "user"]
    last = users[-1] if users else len(result) - 1
    text = result[last]["content"]
    result[last] = {**result[last], "content": text + joined_notes(chosen.notes)}
    return NotedChat(result, note_places(chosen.notes, last, len(text) + len(NOTE_OPENING)), chosen.left_out)


def render_note(template: str, mention: str) -> str:
    """The note with the prompt's own words in place of ``{mention}``; see :func:`inert_note`."""
    return inert_note(template.replace(PLACEHOLDER, sanitise(mention, MAX_MENTION)))


def inert_note(text: str) -> str:
    """``text`` as it may stand in a frame: sanitised, at most :data:`MAX_NOTE` characters, with round brackets for square
    ones and their look-alikes, so that it neither closes its frame nor opens one. Doing it again changes nothing."""
    return sanitise(text, MAX_NOTE).translate(_ROUND)


def sanitise(text: str, limit: int) -> str:
    """``text`` on one line, at most ``limit`` characters, without template tokens, control or format characters."""
    # Invisible characters go first: they could hide a token from the pattern and vanish later.
    kept = "".join(" " if c.isspace() else c for c in text if c.isspace() or unicodedata.category(c)[0] != "C")
    previous = None
    while previous != kept:  # removing one token may join the halves of another
        previous, kept = kept, " ".join(_TEMPLATE_TOKEN.sub(" ", kept).split())
    return kept if len(kept) <= limit else kept[: limit - 1].rstrip() + "…"
