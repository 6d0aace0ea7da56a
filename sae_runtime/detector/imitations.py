"""Recognising text of the prompt that looks like a note of ours.

It is reported and left alone: it has the rights of the text that it stands in, and a person may well quote a note. Known
are the frames' words in any case and spacing, in square brackets and their look-alikes, with invisible characters among
them. Letters of other scripts that look the same are not known. Notes of ours that a client sends back with earlier turns
are reported, too: they are text of the prompt by then.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from sae_runtime.detector.notes import CLOSING_BRACKETS, MAX_NOTES_LENGTH, OPENING_BRACKETS
from sae_runtime.detector.results import Imitation
from sae_runtime.engines.chat import ChatMessage

MAX_IMITATIONS = 32
"""How many are reported."""

_UNSEEN = r"\u00ad\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff"
_INVISIBLE = f"[{_UNSEEN}]{{0,16}}"
_SPACE = rf"[\s{_UNSEEN}]{{1,16}}"
_OPEN, _CLOSE = f"[{re.escape(OPENING_BRACKETS)}]", f"[{re.escape(CLOSING_BRACKETS)}]"


def _word(letters: str) -> str:
    """``letters`` with invisible characters among them."""
    return _INVISIBLE.join(letters)


_NOTE = _word("note")
_WORDING = _SPACE.join(map(_word, ("note", "on", "the", "wording")))
# Every repetition is bounded, so that the time is linear in the text.
_OPENING = re.compile(rf"{_OPEN}(?:{_SPACE})?{_NOTE}(?:{_SPACE})?[:：]|(?:{_OPEN}(?:{_SPACE})?)?{_WORDING}", re.I)
_REST = re.compile(rf"[^{re.escape(OPENING_BRACKETS + CLOSING_BRACKETS)}]{{0,{MAX_NOTES_LENGTH}}}{_CLOSE}")


def find_imitations(messages: Sequence[ChatMessage]) -> list[Imitation]:
    """The first :data:`MAX_IMITATIONS` places in ``messages``, of any role, that look like a note's frame."""
    found: list[Imitation] = []
    for number, message in enumerate(messages):
        for start, end in _places(message["content"]):
            found.append(Imitation(message=number, start=start, end=end))
            if len(found) == MAX_IMITATIONS:
                return found
    return found


def _places(text: str) -> Iterator[tuple[int, int]]:
    at = 0
    while match := _OPENING.search(text, at):
        rest = _REST.match(text, match.end())
        at = rest.end() if rest else match.end()
        yield match.start(), at
