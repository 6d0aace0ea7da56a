"""Rendering a catalog note for a prompt. Catalog and prompt text are untrusted: fixed form, capped, inert."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

from sae_runtime.catalog.packs import PLACEHOLDER

MAX_NOTE = 240
MAX_MENTION = 60
# Tokens of common chat templates: <|im_end|>, <s>, [INST], <start_of_turn>, ...
_TEMPLATE_TOKEN = re.compile(
    r"<\|[^|<>]{0,40}\|>|</?s>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>|<\|?/?think\|?>", re.I
)


NOTE_OPENING = "\n\n[Note on the wording above: "
NOTE_CLOSING = "]"


def joined_notes(notes: Iterable[str]) -> str:
    """What is appended to a text for ``notes``; equal ones are given once."""
    return NOTE_OPENING + " ".join(dict.fromkeys(notes)) + NOTE_CLOSING


def annotate_after(messages: Sequence[dict[str, Any]], notes: Iterable[str]) -> list[dict[str, Any]]:
    """Chat messages with ``notes`` after the last user text (or the last text at all); the input is left alone."""
    result = list(messages)
    users = [index for index, message in enumerate(result) if message["role"] == "user"]
    last = users[-1] if users else len(result) - 1
    result[last] = {**result[last], "content": result[last]["content"] + joined_notes(notes)}
    return result


def render_note(template: str, mention: str) -> str:
    """The note with the prompt's own words in place of ``{mention}``: one line, without control or template tokens."""
    return sanitise(template.replace(PLACEHOLDER, sanitise(mention, MAX_MENTION)), MAX_NOTE)


def sanitise(text: str, limit: int) -> str:
    """``text`` on one line, at most ``limit`` characters, without template tokens, control or format characters."""
    # Invisible characters go first: they could hide a token from the pattern and vanish later.
    kept = "".join(" " if c.isspace() else c for c in text if c.isspace() or unicodedata.category(c)[0] != "C")
    previous = None
    while previous != kept:  # removing one token may join the halves of another
        previous, kept = kept, " ".join(_TEMPLATE_TOKEN.sub(" ", kept).split())
    return kept if len(kept) <= limit else kept[: limit - 1].rstrip() + "…"
