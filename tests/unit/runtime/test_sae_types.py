"""Laws of the SAE types. Weights are small integers, so that float32 arithmetic is exact and results compare equal."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sae_runtime.errors import InputError
from sae_runtime.sae import SAE, GatedSAE, JumpReLUSAE, ReLUSAE, TopKSAE

TYPES = (ReLUSAE, JumpReLUSAE, GatedSAE, TopKSAE)


def integers(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randint(-4, 5, shape, generator=generator).float()


def weights_for(d_in: int, d_sae: int, generator: torch.Generator) -> dict[str, Tensor]:
    return {
        "W_enc": integers((d_in, d_sae), generator),
        "W_dec": integers((d_sae, d_in), generator),
        "b_enc": integers((d_sae,), generator),
        "b_dec": integers((d_in,), generator),
        "threshold": integers((d_sae,), generator) + 0.5,
        "b_gate": integers((d_sae,), generator),
        "b_mag": integers((d_sae,), generator),
        "r_mag": integers((d_sae,), generator) / 4,
    }


@st.composite
def saes(draw: st.DrawFn, kinds: tuple[type[SAE], ...] = TYPES) -> tuple[Any, Tensor, list[int]]:
    """An SAE, a batch for it, and some of its columns in any order."""
    d_in, d_sae, n = draw(st.integers(1, 6)), draw(st.integers(1, 12)), draw(st.integers(1, 5))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    kind = draw(st.sampled_from(kinds))
    options: dict[str, Any] = {"apply_b_dec_to_input": draw(st.booleans())}
    if kind is TopKSAE:
        options["k"] = draw(st.integers(1, d_sae))
    columns = draw(st.lists(st.integers(0, d_sae - 1), unique=True, max_size=d_sae))
    return kind(weights_for(d_in, d_sae, generator), **options), integers((n, d_in), generator), columns


@given(saes())
def test_encoding_a_subset_gives_the_columns_of_the_full_encode(case: tuple[SAE, Tensor, list[int]]) -> None:
    sae, x, columns = case
    picked = torch.tensor(columns, dtype=torch.int64)
    assert torch.equal(sae.encode(x, picked), sae.encode(x)[:, picked])


@given(saes((JumpReLUSAE,)))
def test_subset_encodes_exactly_like_its_columns(case: tuple[JumpReLUSAE, Tensor, list[int]]) -> None:
    sae, x, columns = case
    if not columns:
        columns = [0]
    small = sae.subset(columns)
    assert torch.equal(small.encode(x), sae.encode(x)[:, columns])
    assert small.latents == columns
    assert small.metadata["sensecheck_full_d_sae"] == sae.d_sae
    kept = torch.zeros_like(sae.encode(x))
    kept[:, columns] = sae.encode(x)[:, columns]
    assert torch.equal(small.decode(small.encode(x)), sae.decode(kept))


@given(saes((JumpReLUSAE,)), st.data())
def test_a_subset_of_a_subset_still_names_latents_of_the_full_dictionary(
    case: tuple[JumpReLUSAE, Tensor, list[int]], data: st.DataObject
) -> None:
    sae, x, columns = case
    if not columns:
        columns = [0]
    at = data.draw(st.lists(st.integers(0, len(columns) - 1), unique=True, min_size=1))
    twice = sae.subset(columns).subset(at)
    assert twice.latents == [columns[i] for i in at]
    assert twice.metadata["sensecheck_full_d_sae"] == sae.d_sae
    assert torch.equal(twice.encode(x), sae.encode(x)[:, twice.latents])


@given(saes((JumpReLUSAE,)))
def test_jumprelu_passes_what_is_above_threshold_and_zero_unchanged(
    case: tuple[JumpReLUSAE, Tensor, list[int]],
) -> None:
    sae, x, _ = case
    pre, features = sae.pre_activations(x), sae.encode(x)
    on = (pre > sae.weights["threshold"]) & (pre > 0)
    assert torch.equal(features[on], pre[on])
    assert torch.all(features[~on] == 0)


def test_jumprelu_is_off_exactly_at_its_threshold() -> None:
    one = torch.ones(1, 1)
    weights = {"W_enc": one, "W_dec": one, "b_enc": torch.zeros(1), "b_dec": torch.zeros(1)}
    sae = JumpReLUSAE(weights | {"threshold": torch.tensor([2.0])})
    assert sae.encode(torch.tensor([[1.0], [2.0], [2.25]])).squeeze(1).tolist() == [0.0, 0.0, 2.25]


@given(saes((ReLUSAE,)))
def test_relu_matches_the_written_formula(case: tuple[ReLUSAE, Tensor, list[int]]) -> None:
    sae, x, _ = case
    w = sae.weights
    centred = x - w["b_dec"] if sae.apply_b_dec_to_input else x
    features = (centred @ w["W_enc"] + w["b_enc"]).clamp(min=0)
    assert torch.equal(sae.encode(x), features)
    assert torch.equal(sae.decode(features), features @ w["W_dec"] + w["b_dec"])


@given(saes((GatedSAE,)))
def test_gated_matches_the_written_formula(case: tuple[GatedSAE, Tensor, list[int]]) -> None:
    """As published: two encoders, of which the second one has the weights of the first, scaled per latent."""
    sae, x, _ = case
    w = sae.weights
    centred = x - w["b_dec"] if sae.apply_b_dec_to_input else x
    on = centred @ w["W_enc"] + w["b_gate"] > 0
    magnitude = (centred @ (w["W_enc"] * w["r_mag"].exp()) + w["b_mag"]).clamp(min=0)
    features = sae.encode(x)
    torch.testing.assert_close(features[on], magnitude[on], rtol=1e-5, atol=1e-4)
    assert torch.all(features[~on] == 0)
    assert torch.equal(sae.decode(features), features @ w["W_dec"] + w["b_dec"])


def test_gated_is_off_exactly_at_its_gate_and_its_magnitude_is_never_negative() -> None:
    one, zero = torch.ones(1, 1), torch.zeros(1)
    weights = {"W_enc": one, "W_dec": one, "b_dec": zero, "b_gate": zero - 1, "b_mag": zero - 2, "r_mag": zero}
    assert GatedSAE(weights).encode(torch.tensor([[1.0], [1.5], [3.0]])).squeeze(1).tolist() == [0.0, 0.0, 1.0]


@given(saes((TopKSAE,)))
def test_topk_keeps_the_k_largest_positive_activations_of_each_row(case: tuple[TopKSAE, Tensor, list[int]]) -> None:
    sae, x, _ = case
    pre, features = sae.pre_activations(x).relu(), sae.encode(x)
    assert torch.all((features > 0).sum(1) <= sae.k)
    for row, full in zip(features, pre, strict=True):
        assert torch.equal(row[row > 0], full[row > 0])
        assert row.sort(descending=True).values[: sae.k].tolist() == full.sort(descending=True).values[: sae.k].tolist()


@given(saes())
def test_moving_to_another_dtype_keeps_type_options_and_metadata(case: tuple[SAE, Tensor, list[int]]) -> None:
    sae, x, _ = case
    sae.metadata["hook_name"] = "blocks.3.hook_resid_post"
    if isinstance(sae, GatedSAE):
        sae.weights["r_mag"].zero_()  # the exponential of another number is rounded to its dtype
    moved = sae.to(dtype=torch.float64)
    assert type(moved) is type(sae)
    assert moved.encode(x).dtype == torch.float64
    assert torch.equal(moved.encode(x).float(), sae.encode(x))
    assert moved.metadata == sae.metadata
    assert (moved.apply_b_dec_to_input, moved.config()) == (sae.apply_b_dec_to_input, sae.config())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_input_of_any_float_dtype_is_computed_in_the_dtype_of_the_sae(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    sae, x = ReLUSAE(weights_for(3, 4, generator)), integers((2, 3), generator)
    assert torch.equal(sae.encode(x.to(dtype)), sae.encode(x))


@pytest.mark.parametrize("kind", [ReLUSAE, JumpReLUSAE, GatedSAE])
def test_activations_of_another_width_are_refused(kind: type[SAE]) -> None:
    sae = kind(weights_for(4, 6, torch.Generator().manual_seed(1)))
    with pytest.raises(InputError, match=r"width 5.*width 4"):
        sae.encode(torch.zeros(2, 5))


@pytest.mark.parametrize(
    ("kind", "name"), [(ReLUSAE, "b_enc"), (JumpReLUSAE, "threshold"), (GatedSAE, "b_gate"), (GatedSAE, "r_mag")]
)
def test_a_missing_weight_is_named(kind: type[SAE], name: str) -> None:
    weights = weights_for(4, 6, torch.Generator().manual_seed(1))
    del weights[name]
    with pytest.raises(InputError, match=rf"{kind.architecture}.*{name}"):
        kind(weights)


@pytest.mark.parametrize("kind", [JumpReLUSAE, GatedSAE])
def test_a_weight_of_the_wrong_shape_is_named(kind: type[SAE]) -> None:
    for name in ("W_dec", "b_dec", *kind.latent_weights):
        weights = weights_for(4, 6, torch.Generator().manual_seed(1))
        weights[name] = torch.zeros(7)
        with pytest.raises(InputError, match=f"{name} has shape"):
            kind(weights)


@given(saes())
def test_weights_of_other_types_are_left_out(case: tuple[SAE, Tensor, list[int]]) -> None:
    sae, _, _ = case
    assert sae.weights.keys() == {"W_enc", "W_dec", "b_dec", *sae.latent_weights}


@pytest.mark.parametrize("k", [0, -1, 7])
def test_topk_refuses_a_k_outside_the_dictionary(k: int) -> None:
    with pytest.raises(InputError, match="1 <= k <= 6"):
        TopKSAE(weights_for(4, 6, torch.Generator().manual_seed(1)), k=k)
