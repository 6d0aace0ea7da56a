"""Rendering a catalog note for a prompt. Catalog and prompt text are untrusted: fixed form, capped, inert."""

from __future__ import annotations

import re
import unicodedata

from sae_runtime.catalog.packs import PLACEHOLDER

MAX_NOTE = 240
MAX_MENTION = 60
# Tokens of common chat templates: <|im_end|>, <s>, [INST], <start_of_turn>, ...
_TEMPLATE_TOKEN = re.compile(
    r"<\|[^|<>]{0,40}\|>|</?s>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>|<\|?/?think\|?>", re.I
)


def render_note(template: str, mention: str) -> str:
    """The note with the prompt's own words in place of ``{mention}``: one line, without control or template tokens."""
    return sanitise(template.replace(PLACEHOLDER, sanitise(mention, MAX_MENTION)), MAX_NOTE)


def sanitise(text: str, limit: int) -> str:
    """``text`` on one line, at most ``limit`` characters, without template tokens, control or format characters."""
    previous = None
    while previous != text:  # removing one token may join the halves of another
        previous, text = text, _TEMPLATE_TOKEN.sub(" ", text)
    kept = "".join(
        " " if char.isspace() else char for char in text if char.isspace() or unicodedata.category(char)[0] != "C"
    )
    line = " ".join(kept.split())
    return line if len(line) <= limit else line[: limit - 1].rstrip() + "…"
