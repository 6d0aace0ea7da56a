"""Which tokens a mention is read at, how their features are pooled, and which tokens count as attention sinks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sae_runtime.detector.sites import SITES, pool, site_tokens
from sae_runtime.engines.chat import TokenSpan
from sae_runtime.engines.transformers import SINK_FACTOR, content_mask


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


def test_pooling_is_the_mean_root_over_content_tokens() -> None:
    features = torch.tensor([[100.0, 0.0], [4.0, 0.0], [16.0, 9.0], [1.0, 1.0]])
    content = torch.tensor([False, True, True, True])
    assert pool(features, content, range(0, 3)).tolist() == [3.0, 1.5]


def test_pooling_without_content_tokens_is_zero() -> None:
    assert pool(torch.ones(2, 3), torch.tensor([False, True]), range(0, 1)).tolist() == [0.0, 0.0, 0.0]
    assert pool(torch.ones(2, 3), torch.tensor([True, True]), range(0)).tolist() == [0.0, 0.0, 0.0]


def test_the_first_token_and_outsized_tokens_are_sinks() -> None:
    residual = torch.ones(6, 4, dtype=torch.bfloat16)
    residual[3] *= SINK_FACTOR * 2
    residual[4] *= SINK_FACTOR / 2
    assert content_mask(residual).tolist() == [False, True, True, False, True, True]
