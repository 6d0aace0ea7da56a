"""Which tokens a mention is read at."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sae_runtime.detector.sites import SITES, site_tokens
from sae_runtime.engines.chat import TokenSpan


def prompt(contents: list[int]) -> list[TokenSpan]:
    """One template token before each message and at the end; each content token covers two characters."""
    spans = []
    for message, tokens in enumerate(contents):
        spans.append(TokenSpan("<>", None, 0, 0))
        spans += [TokenSpan("ab", message, 2 * i, 2 * i + 2) for i in range(tokens)]
    return [*spans, TokenSpan("<>", None, 0, 0)]


@pytest.mark.parametrize(
    ("site", "tokens"),
    [("mention", range(23, 25)), ("after", range(23, 37)), ("rest", range(23, 43))],
)
def test_a_site_begins_at_the_mention_of_its_message(site: str, tokens: range) -> None:
    """Message 1 begins at token 22; characters 3 to 5 lie in its second and third token."""
    assert site_tokens(site, prompt([20, 20]), 1, 3, 5) == tokens


def test_sites_end_with_the_prompt() -> None:
    assert site_tokens("after", prompt([3]), 0, 4, 6) == range(3, 5)


@pytest.mark.parametrize("site", SITES)
def test_a_mention_that_was_cut_off_has_no_tokens(site: str) -> None:
    assert len(site_tokens(site, prompt([3])[:3], 0, 4, 6)) == 0
    assert len(site_tokens(site, prompt([3]), 1, 0, 2)) == 0


@given(st.sampled_from(SITES), st.integers(0, 38), st.integers(1, 10))
def test_sites_grow_from_mention_to_rest_and_never_look_back(site: str, start: int, length: int) -> None:
    spans = prompt([20])
    end = min(start + length, 40)
    mention, after, rest = (site_tokens(name, spans, 0, start, end) for name in SITES)
    assert set(mention) <= set(after) <= set(rest)
    assert mention.start == after.start == rest.start
    assert {i for i, s in enumerate(spans) if s.message == 0 and s.start < end and s.end > start} == set(mention)
