"""Files exchanged with the real SAELens: ``python -m benchmarks.saelens_roundtrip``.

Per SAE type and option, in both directions: one side writes the SAE, both read it, encode the same inputs and decode what
they encoded. Reported are the largest differences, absolute and relative to the largest number that SAELens computes. A
relative difference above 1e-5 fails (exit code 1).

"ranked by norm" and "trained" are SAEs as SAELens' TopK and BatchTopK training leaves them; "shipped" is the dictionary
of the built-in model, which holds some latents of a larger one, in bfloat16.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import torch
import typer
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks import isolated
from benchmarks.table import show
from sae_runtime.models.manifest import SMALL_MODEL
from sae_runtime.paths import SAE_CONFIG_FILE, SAE_WEIGHTS_FILE, artefacts_for
from sae_runtime.sae import SAE, GatedSAE, JumpReLUSAE, ReLUSAE, TopKSAE, load_sae, save_sae

_TOKENS, _LATENTS, _K = 256, 1024, 24
_LIMIT = 1e-5
_SHIPPED = "jumprelu, shipped"


def our_saes(d_in: int, seed: int) -> dict[str, SAE]:
    """An SAE of each type with random weights, with and without the input centred."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    saes: dict[str, SAE] = {}
    for centred in (True, False):
        weights = {
            "W_enc": normal(d_in, _LATENTS) / d_in**0.5,
            "W_dec": normal(_LATENTS, d_in) / d_in**0.5,
            "threshold": normal(_LATENTS).abs(),
            **{name: 0.3 * normal(_LATENTS) for name in ("b_enc", "b_gate", "b_mag", "r_mag")},
            "b_dec": 0.3 * normal(d_in),
        }
        for kind in (ReLUSAE, JumpReLUSAE, GatedSAE):
            saes[name_of(kind.architecture, centred)] = kind(weights, apply_b_dec_to_input=centred)
        saes[name_of("topk", centred)] = TopKSAE(weights, k=_K, apply_b_dec_to_input=centred)
    return saes


def their_saes(d_in: int) -> dict[str, dict[str, Any]]:
    """What SAELens writes: the same, and SAEs as its training leaves them."""
    sizes = {"d_in": d_in, "d_sae": _LATENTS, "dtype": "float32", "device": "cpu"}
    k = {"k": _K}
    cases: dict[str, dict[str, Any]] = {}
    for centred in (True, False):
        for architecture in ("standard", "topk", "jumprelu", "gated"):
            more = k if architecture == "topk" else {}
            config = {**sizes, "architecture": architecture, "apply_b_dec_to_input": centred, **more}
            cases[name_of(architecture, centred)] = {"config": config, "training": False}
    ranked = {**sizes, **k, "architecture": "topk", "rescale_acts_by_decoder_norm": True}
    cases["topk, ranked by norm"] = {"config": ranked, "training": False}
    for architecture in ("topk", "batchtopk"):
        config = {**sizes, **k, "architecture": architecture}
        cases[f"{architecture}, trained"] = {"config": config, "training": True}
    return cases


def name_of(architecture: str, centred: bool) -> str:
    """The name of a case in the table."""
    return architecture if centred else f"{architecture}, input not centred"


def compare(folder: Path, x: Tensor) -> list[dict[str, Any]]:
    """Read all SAEs in ``folder`` and compare with what SAELens computed from the same files."""
    theirs = load_file(folder / "saelens.safetensors")
    rows = []
    for side in ("ours", "theirs"):
        for path in sorted((folder / side).iterdir()):
            sae = load_sae(path)
            features = sae.encode(x)
            found = {"features": features, "reconstruction": sae.decode(features)}
            row: dict[str, Any] = {
                "SAE": path.name,
                "written_by": "SAELens" if side == "theirs" else "Sensecheck",
                "active_latents": round((features > 0).sum(1).float().mean().item(), 1),
            }
            for kind, value in found.items():
                expected = theirs[f"{side}/{path.name}/{kind}"]
                difference = (value - expected).abs().max().item()
                row |= {f"{kind}_difference": difference, f"{kind}_relative": difference / expected.abs().max().item()}
            rows.append(row)
    return rows


def main(
    seed: int = 0, as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False
) -> None:
    """Write, let SAELens read and write, compare."""
    shipped = artefacts_for(SMALL_MODEL)
    d_in = load_sae(shipped).d_in
    x = torch.randn(_TOKENS, d_in, generator=torch.Generator().manual_seed(seed + 1))
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        save_file({"x": x}, folder / "inputs.safetensors")
        for name, sae in our_saes(d_in, seed).items():
            save_sae(sae, folder / "ours" / name)
        (folder / "ours" / _SHIPPED).mkdir()
        for name in (SAE_CONFIG_FILE, SAE_WEIGHTS_FILE):
            shutil.copy(shipped / name, folder / "ours" / _SHIPPED)
        python = isolated.saelens_python()
        isolated.run(python, "benchmarks.inside.roundtrip", folder, {"write": their_saes(d_in)})
        rows = compare(folder, x)
    show(rows, as_json=as_json)
    relative = [value for row in rows for name, value in row.items() if name.endswith("relative")]
    if not all(value <= _LIMIT for value in relative):  # a comparison with NaN is false
        raise typer.Exit(1)


if __name__ == "__main__":
    with isolated.plain_errors():
        typer.run(main)
