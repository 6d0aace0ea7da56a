"""Text of others on a terminal: what would steer it is shown instead of sent."""

from __future__ import annotations

import unicodedata

_KEPT = "\n\t"
_REVERSING = set("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_PICTURES = 0x2400  # ␀ ␁ ␂ ...
_DELETE, _DELETE_PICTURE = "\x7f", "␡"
_UNSHOWN = "\ufffd"


def visible(text: str) -> str:
    """``text`` with a picture for each control character but line end and tab, and � for what turns the direction.

    One character stays one character, so that places in the text stay true. Joiners of emoji and the like stay.
    """
    return "".join(map(_shown, text))


def visible_json(text: str) -> str:
    """JSON with the same characters escaped, which stand in its strings alone: the same value."""
    return "".join(char if _shown(char) == char else f"\\u{ord(char):04x}" for char in text)


def _shown(char: str) -> str:
    if char in _REVERSING:
        return _UNSHOWN
    if char in _KEPT or unicodedata.category(char) != "Cc":
        return char
    if char == _DELETE:
        return _DELETE_PICTURE
    return chr(_PICTURES + ord(char)) if ord(char) < 0x20 else _UNSHOWN
