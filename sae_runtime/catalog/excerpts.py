"""Caps on the texts that a catalog brings to a page or a reading."""

from __future__ import annotations

MAX_LABEL = 200
"""Characters of a label or gloss."""
MAX_TEXT = 1000
"""Characters of a description, note, or example."""
MAX_LISTED = 50
"""Examples, promoted tokens and the like of one feature, and sentences of one sense."""


def cut(text: str, limit: int) -> str:
    """``text`` with at most ``limit`` characters; the last one says when something is missing.

    Raises:
        TypeError: it is no text, as a SQLite file may hold it in a column of texts.
    """
    if not isinstance(text, str):
        raise TypeError(f"a {type(text).__name__} stands where a text should")
    return text if len(text) <= limit else text[: limit - 1] + "…"


def excerpt(text: str, start: int, end: int, limit: int = MAX_TEXT) -> tuple[str, int, int]:
    """At most ``limit`` characters of ``text`` around ``text[start:end]``, and where that stands in them.

    The middle is cut, too, when it is longer. A span that does not lie in the text is empty in the result.
    """
    start = min(max(start, 0), len(text))
    end = min(max(end, start), len(text))
    if len(text) <= limit:
        return text, start, end
    end = min(end, start + limit)
    first = max(0, min(start - (limit - (end - start)) // 2, len(text) - limit))
    return text[first : first + limit], start - first, end - first
