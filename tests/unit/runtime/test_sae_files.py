"""The SAELens on-disk format: round trips, files written by others, and refusals that say what to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from sae_runtime.errors import ArtefactError
from sae_runtime.sae import SAE, GatedSAE, JumpReLUSAE, ReLUSAE, TopKSAE, load_sae, save_sae
from sae_runtime.sae.fingerprint import fingerprint_sae

D_IN, D_SAE = 5, 8
METADATA = {"model_name": "tiny", "hook_name": "blocks.2.hook_resid_post"}


def random_weights(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "W_enc": torch.randn(D_IN, D_SAE, generator=generator),
        "W_dec": torch.randn(D_SAE, D_IN, generator=generator),
        "b_enc": torch.randn(D_SAE, generator=generator),
        "b_dec": torch.randn(D_IN, generator=generator),
    }


def relu() -> SAE:
    return ReLUSAE(random_weights(), dict(METADATA), apply_b_dec_to_input=False)


def topk() -> SAE:
    return TopKSAE(random_weights(), dict(METADATA), k=3)


def jumprelu() -> SAE:
    return JumpReLUSAE(random_weights() | {"threshold": torch.full((D_SAE,), 0.3)}, dict(METADATA))


def gated() -> SAE:
    weights, generator = random_weights(), torch.Generator().manual_seed(1)
    del weights["b_enc"]
    extra = {name: torch.randn(D_SAE, generator=generator) for name in ("b_gate", "b_mag", "r_mag")}
    return GatedSAE(weights | extra, dict(METADATA))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A folder with a sound JumpReLU SAE."""
    save_sae(jumprelu(), tmp_path)
    return tmp_path


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "cfg.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | changes), "utf-8")


def drop_from_config(folder: Path, key: str) -> None:
    path = folder / "cfg.json"
    config = json.loads(path.read_text("utf-8"))
    del config[key]
    path.write_text(json.dumps(config), "utf-8")


@pytest.mark.parametrize("make", [relu, topk, jumprelu, gated])
def test_round_trip_keeps_weights_options_and_metadata(make: Callable[[], SAE], tmp_path: Path) -> None:
    sae = make()
    save_sae(sae, tmp_path / "new" / "folder")
    loaded = load_sae(tmp_path / "new" / "folder")
    assert type(loaded) is type(sae)
    assert loaded.weights.keys() == sae.weights.keys()
    assert all(torch.equal(loaded.weights[name], sae.weights[name]) for name in sae.weights)
    assert loaded.config() == sae.config()
    assert loaded.apply_b_dec_to_input == sae.apply_b_dec_to_input
    assert loaded.metadata.items() >= METADATA.items()
    x = torch.randn(6, D_IN, generator=torch.Generator().manual_seed(9))
    assert torch.equal(loaded.encode(x), sae.encode(x))


def test_files_have_the_names_and_entries_of_saelens_6(saved: Path) -> None:
    assert sorted(path.name for path in saved.iterdir()) == ["cfg.json", "sae_weights.safetensors"]
    config = json.loads((saved / "cfg.json").read_text("utf-8"))
    assert (config["architecture"], config["d_in"], config["d_sae"]) == ("jumprelu", D_IN, D_SAE)
    assert config["dtype"] == "float32"
    assert int(config["metadata"]["sae_lens_version"].split(".")[0]) >= 6
    with safe_open(saved / "sae_weights.safetensors", "pt") as weights:
        shapes = {name: weights.get_slice(name).get_shape() for name in weights.keys()}  # noqa: SIM118
    assert shapes == {
        "W_enc": [D_IN, D_SAE], "W_dec": [D_SAE, D_IN], "b_enc": [D_SAE], "b_dec": [D_IN], "threshold": [D_SAE],
    }  # fmt: skip


def test_a_folder_written_by_others_loads(tmp_path: Path) -> None:
    """The least that SAELens writes: no optional entry of ours, and options this project ignores."""
    save_file(random_weights(), tmp_path / "sae_weights.safetensors")
    config = {"architecture": "standard", "d_in": D_IN, "d_sae": D_SAE, "normalize_activations": "none", "extra": 1}
    (tmp_path / "cfg.json").write_text(json.dumps(config), "utf-8")
    sae = load_sae(tmp_path)
    assert isinstance(sae, ReLUSAE)
    assert sae.latents == list(range(D_SAE))
    assert sae.apply_b_dec_to_input is True


def test_a_topk_sae_that_ranks_by_decoder_norm_is_folded_into_the_same_function(tmp_path: Path) -> None:
    """SAELens' own encode and decode of such an SAE, written out."""
    save_sae(topk(), tmp_path)
    edit_config(tmp_path, rescale_acts_by_decoder_norm=True)
    w, x = topk().weights, torch.randn(6, D_IN, generator=torch.Generator().manual_seed(9))
    norms = w["W_dec"].norm(dim=1)
    top = (((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]) * norms).topk(3)
    features = torch.zeros(6, D_SAE).scatter_(1, top.indices, top.values.relu())
    sae = load_sae(tmp_path)
    torch.testing.assert_close(sae.encode(x), features)
    torch.testing.assert_close(sae.decode(sae.encode(x)), (features / norms) @ w["W_dec"] + w["b_dec"])
    save_sae(sae, tmp_path)  # and it is not folded twice
    assert torch.equal(load_sae(tmp_path).encode(x), sae.encode(x))


def test_bfloat16_on_disk_loads_as_float32_with_the_rounded_values(tmp_path: Path) -> None:
    sae = jumprelu().to(dtype=torch.bfloat16)
    save_sae(sae, tmp_path)
    assert json.loads((tmp_path / "cfg.json").read_text("utf-8"))["dtype"] == "bfloat16"
    loaded = load_sae(tmp_path)
    assert {tensor.dtype for tensor in loaded.weights.values()} == {torch.float32}
    assert all(torch.equal(loaded.weights[name], sae.weights[name].float()) for name in sae.weights)


def test_a_subset_keeps_its_latent_numbers_on_disk(tmp_path: Path) -> None:
    sae = jumprelu()
    assert isinstance(sae, JumpReLUSAE)
    save_sae(sae.subset([6, 1, 4]), tmp_path)
    loaded = load_sae(tmp_path)
    assert (loaded.latents, loaded.d_sae, loaded.metadata["sensecheck_full_d_sae"]) == ([6, 1, 4], 3, D_SAE)


def test_saving_over_another_sae_replaces_it_whole(saved: Path) -> None:
    save_sae(topk(), saved)
    assert isinstance(load_sae(saved), TopKSAE)
    assert len(list(saved.iterdir())) == 2


@pytest.mark.parametrize("name", ["cfg.json", "sae_weights.safetensors"])
def test_a_missing_file_is_named(saved: Path, name: str) -> None:
    (saved / name).unlink()
    with pytest.raises(ArtefactError) as caught:
        load_sae(saved)
    assert name in caught.value.message
    assert caught.value.remedy


def test_pickled_weights_are_never_read(saved: Path) -> None:
    (saved / "sae_weights.safetensors").unlink()
    torch.save(random_weights(), saved / "sae_weights.pt")
    with pytest.raises(ArtefactError):
        load_sae(saved)


def truncate(path: Path, keep: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])


def replace_weights(folder: Path, **changes: Tensor | None) -> None:
    weights = jumprelu().weights | changes
    kept = {name: tensor for name, tensor in weights.items() if tensor is not None}
    save_file(kept, folder / "sae_weights.safetensors")


def make_topk_without_k(folder: Path) -> None:
    save_sae(topk(), folder)
    drop_from_config(folder, "k")


def make_topk_with(k: Any) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        save_sae(topk(), folder)
        edit_config(folder, k=k)

    return make


def fold_without_decoder(folder: Path, decoder: Tensor | None) -> None:
    save_sae(topk(), folder)
    edit_config(folder, rescale_acts_by_decoder_norm=True)
    weights = random_weights() | ({} if decoder is None else {"W_dec": decoder})
    if decoder is None:
        del weights["W_dec"]
    save_file(weights, folder / "sae_weights.safetensors")


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "empty configuration": lambda folder: (folder / "cfg.json").write_bytes(b""),
    "truncated configuration": lambda folder: truncate(folder / "cfg.json", 0.5),
    "configuration that is no text": lambda folder: (folder / "cfg.json").write_bytes(b"\xff\xfe\x00"),
    "configuration that is a list": lambda folder: (folder / "cfg.json").write_text("[1, 2]", "utf-8"),
    "empty weights": lambda folder: (folder / "sae_weights.safetensors").write_bytes(b""),
    "truncated weights": lambda folder: truncate(folder / "sae_weights.safetensors", 0.9),
    "weights that are no safetensors": lambda folder: (folder / "sae_weights.safetensors").write_bytes(b"x" * 100),
    "weights without thresholds": lambda folder: replace_weights(folder, threshold=None),
    "weights of other shapes": lambda folder: replace_weights(folder, b_dec=torch.zeros(D_IN + 1)),
    "one-dimensional weights": lambda folder: replace_weights(folder, W_enc=torch.zeros(D_IN)),
    "topk without k": make_topk_without_k,
    "weights of another type": lambda folder: replace_weights(folder, b_gate=torch.zeros(D_SAE)),
    "latents that do not fit": lambda folder: edit_config(folder, metadata={"sensecheck_latents": [1, 2]}),
    # Found by fuzzing:
    "latents that are no numbers": lambda folder: edit_config(folder, metadata={"sensecheck_latents": ["a"] * D_SAE}),
    "latents below zero": lambda folder: edit_config(
        folder, metadata={"sensecheck_latents": list(range(-1, D_SAE - 1))}
    ),
    "latents beyond counting": lambda folder: edit_config(
        folder, metadata={"sensecheck_latents": [2**63 + n for n in range(D_SAE)]}
    ),
    "a latent twice": lambda folder: edit_config(folder, metadata={"sensecheck_latents": [0, 0, *range(2, D_SAE)]}),
    "latents that are one number": lambda folder: edit_config(folder, metadata={"sensecheck_latents": 5}),
    "metadata that is no table": lambda folder: edit_config(folder, metadata=[1]),
    "an architecture that is a list": lambda folder: edit_config(folder, architecture=["topk"]),
    "topk whose k is no number": make_topk_with("2"),
    "topk whose k is nothing": make_topk_with(None),
    "topk whose k is true": make_topk_with(True),
    "topk whose k is a fraction": make_topk_with(2.5),
    "weights to be folded that are missing": lambda folder: fold_without_decoder(folder, None),
    "weights to be folded of one dimension": lambda folder: fold_without_decoder(folder, torch.zeros(D_IN)),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_damage_is_an_artefact_error_with_a_remedy(saved: Path, damage: Callable[[Path], Any]) -> None:
    damage(saved)
    with pytest.raises(ArtefactError) as caught:
        load_sae(saved)
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("option", "named"),
    [
        ({"architecture": "batchtopk"}, "batchtopk"),
        ({"architecture": None}, "None"),
        ({"normalize_activations": "expected_average_only_in"}, "normalize_activations"),
        ({"reshape_activations": "hook_z"}, "reshape_activations"),
        ({"rescale_acts_by_decoder_norm": True}, "decoder norms"),
    ],
)
def test_unsupported_options_are_refused_with_a_remedy(saved: Path, option: dict[str, Any], named: str) -> None:
    edit_config(saved, **option)
    with pytest.raises(ArtefactError, match=named) as caught:
        load_sae(saved)
    assert caught.value.remedy


def test_the_fingerprint_follows_both_files_and_needs_both(saved: Path) -> None:
    before = fingerprint_sae(saved)
    assert len(before) == 16
    edit_config(saved, device="cuda")
    after_config = fingerprint_sae(saved)
    replace_weights(saved, b_enc=torch.zeros(D_SAE))
    assert len({before, after_config, fingerprint_sae(saved)}) == 3
    (saved / "cfg.json").unlink()
    with pytest.raises(ArtefactError, match=r"cfg\.json is missing"):
        fingerprint_sae(saved)


@pytest.mark.parametrize("value", [float("inf"), -float("inf"), float("nan")], ids=str)
@pytest.mark.parametrize("name", ["W_enc", "W_dec", "b_enc", "b_dec", "threshold"])
def test_weights_that_are_no_finite_numbers_are_refused(saved: Path, name: str, value: float) -> None:
    weights = {key: tensor.clone() for key, tensor in jumprelu().weights.items()}
    weights[name].view(-1)[-1] = value
    save_file(weights, saved / "sae_weights.safetensors")
    with pytest.raises(ArtefactError, match=rf"numbers in {name} are infinite or none") as error:
        load_sae(saved)
    assert error.value.remedy


@pytest.mark.parametrize("name", ["W_enc", "b_enc", "b_dec", "threshold"])
def test_a_compact_sae_is_looked_through_where_it_is_read(saved: Path, name: str) -> None:
    weights = {key: tensor.clone() for key, tensor in jumprelu().weights.items()}
    weights[name].view(-1)[0] = float("nan")
    save_file(weights, saved / "sae_weights.safetensors")
    with pytest.raises(ArtefactError, match=name):
        load_sae(saved, compact=True)


@pytest.mark.parametrize("latent", [-1, 2**24, 2**62, 10**30])
def test_absurd_numbers_of_latents_are_refused(saved: Path, latent: int) -> None:
    edit_config(saved, metadata={"sensecheck_latents": [latent, *range(1, D_SAE)]})
    with pytest.raises(ArtefactError, match="latents"):
        load_sae(saved)
