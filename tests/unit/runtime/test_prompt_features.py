"""From a residual stream to sparse features: sinks, subsets, pooling, serialisation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sae_runtime.engines.features import SINK_FACTOR, PromptFeatures, content_mask, encode_prompt
from sae_runtime.errors import EngineError
from sae_runtime.sae import JumpReLUSAE

D_IN, WIDTH = 6, 11


def make_sae(seed: int = 0) -> JumpReLUSAE:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"W_enc": (D_IN, WIDTH), "W_dec": (WIDTH, D_IN), "b_enc": (WIDTH,), "b_dec": (D_IN,)}
    weights = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return JumpReLUSAE(weights | {"threshold": torch.full((WIDTH,), 0.1)})


def residual(tokens: int, seed: int) -> torch.Tensor:
    return torch.randn(tokens, D_IN, generator=torch.Generator().manual_seed(seed))


def test_the_first_token_and_outsized_tokens_are_sinks() -> None:
    stream = torch.ones(6, 4, dtype=torch.bfloat16)
    stream[3] *= SINK_FACTOR * 2
    stream[4] *= SINK_FACTOR / 2
    assert content_mask(stream).tolist() == [False, True, True, False, True, True]


@given(st.integers(1, 20), st.integers(0, 1000), st.integers(0, 20), st.integers(0, 20))
def test_pooling_is_the_mean_root_over_content_tokens(tokens: int, seed: int, start: int, length: int) -> None:
    stream = residual(tokens, seed)
    dense = make_sae().encode(stream).clone()
    content = content_mask(stream)
    where = range(min(start, tokens), min(start + length, tokens))
    part = dense[where.start : where.stop][content[where.start : where.stop]].double()
    expected = part.sqrt().mean(0) if len(part) else torch.zeros(WIDTH)
    pooled = encode_prompt(make_sae(), stream).pooled(where, WIDTH)
    np.testing.assert_allclose(pooled, expected.numpy(), atol=1e-6)


@given(st.integers(2, 20), st.integers(0, 1000), st.sets(st.integers(0, WIDTH - 1), min_size=1))
def test_a_subset_of_latents_gives_the_same_activations(tokens: int, seed: int, latents: set[int]) -> None:
    stream = residual(tokens, seed)
    some, full = encode_prompt(make_sae(), stream, sorted(latents)), encode_prompt(make_sae(), stream)
    everything = range(tokens)
    np.testing.assert_allclose(
        some.pooled(everything, WIDTH)[sorted(latents)], full.pooled(everything, WIDTH)[sorted(latents)], rtol=1e-5
    )
    assert set(some.latents.tolist()) <= latents


def test_a_file_with_a_part_of_the_dictionary_keeps_the_dictionary_s_indices() -> None:
    part = make_sae().subset([2, 5, 7])
    stream = residual(9, 3)
    assert set(encode_prompt(part, stream).latents.tolist()) <= {2, 5, 7}
    np.testing.assert_allclose(
        encode_prompt(part, stream, [5]).pooled(range(9), WIDTH),
        encode_prompt(make_sae(), stream, [5]).pooled(range(9), WIDTH),
        rtol=1e-5,
    )
    with pytest.raises(EngineError, match="does not hold"):
        encode_prompt(part, stream, [6])
    with pytest.raises(EngineError, match="does not hold"):
        encode_prompt(part, stream, [9])


@given(st.integers(1, 20), st.integers(0, 1000))
def test_bytes_give_the_features_back(tokens: int, seed: int) -> None:
    features = encode_prompt(make_sae(), residual(tokens, seed))
    again = PromptFeatures.from_bytes(features.to_bytes())
    for name, array in vars(features).items():
        np.testing.assert_array_equal(vars(again)[name], array)


def test_the_strongest_features_come_first_and_sinks_have_none() -> None:
    stream = residual(12, 1)
    dense = make_sae().encode(stream)
    rows = encode_prompt(make_sae(), stream).strongest(3)
    assert len(rows) == 12
    assert rows[0] == []
    for row, token in zip(rows[1:], dense[1:], strict=True):
        values = [value for _, value in row]
        assert values == pytest.approx([v for v in token.sort(descending=True).values[:3].tolist() if v > 0])


@pytest.mark.parametrize("fault", [0.0, float("nan"), float("inf")])
def test_tokens_that_were_not_captured_are_an_error(fault: float) -> None:
    stream = residual(5, 0)
    stream[3] = fault
    with pytest.raises(EngineError, match="incomplete"):
        encode_prompt(make_sae(), stream)
    with pytest.raises(EngineError, match="incomplete"):
        encode_prompt(make_sae(), stream[:0])


def test_damaged_bytes_are_an_error() -> None:
    with pytest.raises(EngineError, match="damaged"):
        PromptFeatures.from_bytes(b"no features")


def test_a_latent_that_is_asked_for_twice_counts_once() -> None:
    """Found by fuzzing: its activations were there twice, and a reading would have been twice as strong."""
    stream = residual(9, 3)
    once, twice = encode_prompt(make_sae(), stream, [5, 7]), encode_prompt(make_sae(), stream, [7, 5, 7, 5])
    for name, array in vars(once).items():
        np.testing.assert_array_equal(vars(twice)[name], array)


def test_the_latents_of_a_file_may_stand_in_any_order() -> None:
    stream, order = residual(9, 3), [7, 2, 5]
    part = make_sae().subset(order)
    for latent in order:
        np.testing.assert_allclose(
            encode_prompt(part, stream, [latent]).pooled(range(9), WIDTH),
            encode_prompt(make_sae(), stream, [latent]).pooled(range(9), WIDTH),
            rtol=1e-5,
        )


WHOLE = PromptFeatures(
    content=np.array([False, True, True]),
    positions=np.array([1, 2], dtype=np.int32),
    latents=np.array([7, 5], dtype=np.int32),
    values=np.array([1.5, 2.0], dtype=np.float32),
)


@pytest.mark.parametrize(
    "change",
    [
        {"positions": np.array([], dtype=np.int32)},
        {"positions": np.array([2, 1], dtype=np.int32)},
        {"positions": np.array([1, 3], dtype=np.int32)},
        {"positions": np.array([-1, 2], dtype=np.int32)},
        {"positions": np.array([[1, 2]], dtype=np.int32)},
        {"positions": np.array([1.0, 2.0], dtype=np.float32)},
        {"latents": np.array([-1, 5], dtype=np.int32)},
        {"latents": np.array([7, 5], dtype=np.int64)},
        {"values": np.array([1.5, np.nan], dtype=np.float32)},
        {"values": np.array([1.5, np.inf], dtype=np.float32)},
        {"values": np.array([1.5, 0.0], dtype=np.float32)},
        {"content": np.array([0, 1, 1], dtype=np.uint8)},
    ],
    ids=str,
)
def test_arrays_that_do_not_belong_together_are_an_error(change: dict[str, np.ndarray]) -> None:
    """Found by fuzzing: they were taken, and judging the reading failed with errors of numpy."""
    assert len(PromptFeatures.from_bytes(WHOLE.to_bytes())) == 3
    with pytest.raises(EngineError, match="damaged"):
        PromptFeatures.from_bytes(replace(WHOLE, **change).to_bytes())
