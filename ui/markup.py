"""HTML that several tabs write alike."""

from __future__ import annotations

from html import escape


def marked(text: str, start: int, end: int) -> str:
    """``text``, escaped, with ``text[start:end]`` marked."""
    return f"{escape(text[:start])}<mark>{escape(text[start:end])}</mark>{escape(text[end:])}"
