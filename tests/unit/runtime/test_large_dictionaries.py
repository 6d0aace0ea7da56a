"""A large dictionary: read compactly, encoded by columns and in blocks, pooled by latents, with the same results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sae_runtime.engines import features
from sae_runtime.engines.features import encode_prompt
from sae_runtime.sae import SAE, GatedSAE, JumpReLUSAE, ReLUSAE, TopKSAE, load_sae, save_sae

D_IN, WIDTH, TOKENS = 16, 64, 12


def make_sae(kind: type[SAE]) -> SAE:
    """Of small integers in bfloat16, so that sums in float32 are exact and results compare equal."""
    generator = torch.Generator().manual_seed(3)
    shapes: dict[str, tuple[int, ...]] = {"W_enc": (D_IN, WIDTH), "W_dec": (WIDTH, D_IN), "b_dec": (D_IN,)}
    shapes |= dict.fromkeys(kind.latent_weights, (WIDTH,))
    options: dict[str, Any] = {"k": 5} if kind is TopKSAE else {}
    weights = {name: torch.randint(-4, 5, shape, generator=generator).bfloat16() for name, shape in shapes.items()}
    return kind(weights, {"sensecheck_latents": list(range(100, 100 + 3 * WIDTH, 3))}, **options)


def stream() -> torch.Tensor:
    return torch.randint(-9, 10, (TOKENS, D_IN), generator=torch.Generator().manual_seed(4)).float()


@pytest.fixture(params=[JumpReLUSAE, ReLUSAE, GatedSAE, TopKSAE])
def both(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[SAE, SAE]:
    """An SAE in bfloat16, read whole and compactly."""
    save_sae(make_sae(request.param), tmp_path)
    return load_sae(tmp_path), load_sae(tmp_path, compact=True)


def test_a_compact_dictionary_encodes_and_decodes_alike(both: tuple[SAE, SAE]) -> None:
    whole, compact = both
    x, columns = stream(), torch.tensor([7, 3, 63, 0])
    assert torch.equal(compact.encode(x), whole.encode(x))
    assert torch.equal(compact.encode(x, columns), whole.encode(x, columns))
    assert torch.equal(compact.decode(whole.encode(x)), whole.decode(whole.encode(x)))
    assert compact.encode(x).dtype == compact.dtype == torch.float32
    assert torch.equal(compact.held, torch.tensor(compact.latents))


def test_a_compact_dictionary_keeps_what_the_file_stores_each_latent_together(both: tuple[SAE, SAE]) -> None:
    whole, compact = both
    stored = torch.bfloat16 if compact.independent else torch.float32
    assert {tensor.dtype for tensor in compact.weights.values()} == {stored}
    assert {tensor.dtype for tensor in whole.weights.values()} == {torch.float32}
    assert compact.weights["W_enc"].T.is_contiguous() is compact.independent


def test_parts_and_copies_of_a_compact_dictionary_compute_in_the_same_dtype(both: tuple[SAE, SAE]) -> None:
    whole, compact = both
    x = stream()
    assert torch.equal(compact.to(device="cpu").encode(x), whole.encode(x))
    assert compact.to(dtype=torch.float64).encode(x).dtype == torch.float64
    if compact.independent:
        assert torch.equal(compact.subset([5, 2]).encode(x), whole.subset([5, 2]).encode(x))


def test_a_compact_dictionary_outlives_its_file(tmp_path: Path) -> None:
    save_sae(make_sae(JumpReLUSAE), tmp_path)
    compact = load_sae(tmp_path, compact=True)
    expected = compact.encode(stream())
    for file in tmp_path.iterdir():
        file.write_bytes(b"")  # nothing that a prompt needs is looked up in it
    assert torch.equal(compact.encode(stream()), expected)


@pytest.mark.parametrize("block", [1, 3, 63, 64])
@pytest.mark.parametrize("latents", [None, [100, 103, 163, 286]])
def test_blocks_give_what_one_block_gives(
    both: tuple[SAE, SAE], monkeypatch: pytest.MonkeyPatch, block: int, latents: list[int] | None
) -> None:
    whole, _ = both
    expected = encode_prompt(whole, stream(), latents)
    monkeypatch.setattr(features, "_BLOCK", block)
    found = encode_prompt(whole, stream(), latents)
    for name, array in vars(expected).items():
        np.testing.assert_array_equal(vars(found)[name], array, err_msg=name)
        assert vars(found)[name].dtype == array.dtype
    assert len(expected.values)


@given(st.integers(0, TOKENS), st.integers(0, TOKENS), st.sets(st.integers(0, 400)))
def test_pooling_some_latents_is_pooling_all_and_picking(start: int, stop: int, latents: set[int]) -> None:
    found = encode_prompt(make_sae(JumpReLUSAE), stream())
    wanted = np.array(sorted(latents), dtype=np.int64)
    tokens = range(start, max(start, stop))
    np.testing.assert_array_equal(found.pooled_at(tokens, wanted), found.pooled(tokens, 401)[wanted])
