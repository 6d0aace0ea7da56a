"""Reading positions: over which tokens a mention's features are pooled.

A causal model has seen only the words before a token. At the mention itself it may not yet know what is meant; the
tokens that follow carry what it made of the mention. Which site reads a concept best is decided on labelled contexts.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence

from sae_runtime.engines.chat import TokenSpan

SITES = ("mention", "after", "rest")
_AFTER_TOKENS = 12


class TokenPlaces:
    """Where a prompt's tokens stand in its messages: made once per prompt, asked once per mention.

    Args:
        spans: of the prompt's tokens, in the order of the text.
    """

    def __init__(self, spans: Sequence[TokenSpan]) -> None:
        self._count = len(spans)
        self._tokens: dict[int, list[int]] = {}
        for position, span in enumerate(spans):
            if span.message is not None:
                self._tokens.setdefault(span.message, []).append(position)
        self._starts = {key: [spans[i].start for i in tokens] for key, tokens in self._tokens.items()}
        self._ends = {key: [spans[i].end for i in tokens] for key, tokens in self._tokens.items()}

    def site(self, site: str, message: int, start: int, end: int) -> range:
        """See :func:`site_tokens`; takes time logarithmic in the length of the prompt."""
        tokens = self._tokens.get(message, [])
        low = bisect_right(self._ends.get(message, []), start)  # the first token that ends behind the mention's start
        high = bisect_left(self._starts.get(message, []), end)  # behind the last one that begins before its end
        if low >= high:
            return range(0)
        first, last = tokens[low], tokens[high - 1]
        stop = {"mention": last + 1, "after": min(self._count, last + 1 + _AFTER_TOKENS), "rest": self._count}[site]
        return range(first, stop)


def site_tokens(site: str, spans: Sequence[TokenSpan], message: int, start: int, end: int) -> range:
    """Token positions that ``site`` pools for the mention ``content[start:end]`` of ``message``.

    ``mention``: the mention's tokens. ``after``: those and the next 12. ``rest``: from the mention to the end of the
    prompt, the template's closing tokens included. Empty when the mention was cut off with the prompt's tail.
    """
    return TokenPlaces(spans).site(site, message, start, end)
