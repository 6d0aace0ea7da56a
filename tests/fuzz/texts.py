"""Texts and documents that make trouble: what several targets draw from."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

# Words of the catalog, frames of notes, template tokens, letters whose case mapping changes their length, characters of
# several code points or of none that can be seen, half a character, borders of lines and words.
PIECES = (
    "bank", "Bank", "the bank of a river", "mouse", "spring", "user", "assistant", "system",
    "{mention}", "{", "}", "[", "]", "[Note on the wording above: ", "[Note: ", "\n\n[Note on the wording above: x]",
    "<|im_start|>", "<|im_end|>", "<|im_end", "|>", "<s>", "</s>", "[INST]", "<<SYS>>", "<start_of_turn>", "<think>",
    "İ", "ẞ", "ß", "ﬁ", "Σ", "ς", "\u212a", "ǰ", "e\u0301", "日本語", "🙂", "👩\u200d👩\u200d👧", "🇩🇪", "العربية", "नमस्ते",
    "\u200b", "\u200d", "\u00ad", "\ufeff", "\u202e", "\u2066", "\u2069", "\u0600", "\U000e0041", "\ue0000\ue001",
    "\x00", "\x1b", "\x7f", "\x85", "\u2028", "\r\n", "\n", "\t", " ", "  ", "_", "'", '"', "\\", "&amp;", "<b>",
    "1", "٣", "²", "½", "%s", "{0.__class__}", "\U0010ffff", "a" * 300,
)  # fmt: skip
HALVES = ("\ud83d", "\ude42", "\ud800")
_INTEGERS = (0, 1, -1, 2, 3, 7, 64, 255, 2**31 - 1, 2**31, 2**63, -(2**63) - 1, 2**64, 10**30)
_FLOATS = (0.0, -0.0, 0.5, -1.5, 1e-300, 1e308)

# Each of these is drawn as one short byte string and decoded here. Drawing pieces one by one would take hypothesis, and the
# coverage-guided fuzzer, ten times as long.


def texts(pieces: int = 6, *, halves: bool = True) -> st.SearchStrategy[str]:
    """Text of a few pieces; ``halves``: also with lone surrogates, which are no characters."""
    return st.binary(max_size=3 * pieces).map(lambda data: _text(Bytes(data), 3 * pieces, halves=halves))


def documents(size: int = 12) -> st.SearchStrategy[Any]:
    """Anything that JSON and YAML can hold, infinities and NaN aside: a case must be a Python literal."""
    return st.binary(max_size=size).map(lambda data: value_of(Bytes(data)))


class Bytes:
    """Byte by byte; zeros when there are no more."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    def next(self) -> int:
        """The next byte."""
        self._at += 1
        return self._data[self._at - 1] if self._at <= len(self._data) else 0

    def number(self) -> int:
        """A number of three bytes."""
        return self.next() << 16 | self.next() << 8 | self.next()


def value_of(source: Bytes, depth: int = 0) -> Any:
    """The value that ``source`` goes on with."""
    kind = source.next() % (9 if depth < 3 else 7)
    if kind == 0:
        return (None, True, False)[source.next() % 3]
    if kind == 1:
        return _INTEGERS[source.next() % len(_INTEGERS)]
    if kind == 2:
        return _FLOATS[source.next() % len(_FLOATS)]
    if kind < 7:
        return _text(source, 1 + source.next() % 6)
    count = source.next() % 4
    if kind == 7:
        return [value_of(source, depth + 1) for _ in range(count)]
    return {_text(source, 2): value_of(source, depth + 1) for _ in range(count)}


def _text(source: Bytes, size: int, *, halves: bool = True) -> str:
    """Text of at most ``size`` bytes of ``source``: mostly known pieces, some letters, some characters of any kind."""
    text = ""
    for _ in range(size):
        if not source:
            break
        byte = source.next()
        if byte < 176:
            text += PIECES[byte % len(PIECES)]
        elif byte < 216:
            text += chr(32 + (byte * 7 + source.next()) % 95)
        elif byte < 220 and halves:
            text += HALVES[byte % len(HALVES)]
        else:
            point = (byte % 4 << 16 | source.next() << 8 | source.next()) % 0x110000
            text += "" if 0xD800 <= point < 0xE000 else chr(point)
    return text
