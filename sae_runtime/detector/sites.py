"""Reading positions: over which tokens a mention's features are pooled.

A causal model has seen only the words before a token. At the mention itself it may not yet know what is meant; the
tokens that follow carry what it made of the mention. Which site reads a concept best is decided on labelled contexts.
"""

from __future__ import annotations

from sae_runtime.engines.chat import TokenSpan

SITES = ("mention", "after", "rest")
_AFTER_TOKENS = 12


def site_tokens(site: str, spans: list[TokenSpan], message: int, start: int, end: int) -> range:
    """Token positions that ``site`` pools for the mention ``content[start:end]`` of ``message``.

    ``mention``: the mention's tokens. ``after``: those and the next 12. ``rest``: from the mention to the end of the
    prompt, the template's closing tokens included. Empty when the mention was cut off with the prompt's tail.
    """
    inside = [i for i, s in enumerate(spans) if s.message == message and s.start < end and s.end > start]
    if not inside:
        return range(0)
    first, last = inside[0], inside[-1]
    stop = {"mention": last + 1, "after": min(len(spans), last + 1 + _AFTER_TOKENS), "rest": len(spans)}[site]
    return range(first, stop)
