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
    # Invisible characters go first: they could hide a token from the pattern and vanish later.
    kept = "".join(" " if c.isspace() else c for c in text if c.isspace() or unicodedata.category(c)[0] != "C")
    previous = None
    while previous != kept:  # removing one token may join the halves of another
        previous, kept = kept, " ".join(_TEMPLATE_TOKEN.sub(" ", kept).split())
    return kept if len(kept) <= limit else kept[: limit - 1].rstrip() + "…"
