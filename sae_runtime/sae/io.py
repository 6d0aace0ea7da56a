"""SAELens' on-disk format (version 6): ``cfg.json`` beside ``sae_weights.safetensors``. No pickle is ever read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sae_runtime.errors import ArtefactError, InputError
from sae_runtime.paths import SAE_CONFIG_FILE, SAE_WEIGHTS_FILE
from sae_runtime.sae.types import SAE, GatedSAE, JumpReLUSAE, ReLUSAE, TopKSAE

_TYPES: dict[str, type[SAE]] = {cls.architecture: cls for cls in (ReLUSAE, JumpReLUSAE, GatedSAE, TopKSAE)}
_FORMAT_VERSION = "6.0.0"


def save_sae(sae: SAE, folder: Path) -> None:
    """Write ``sae`` to ``folder``; each file appears only when complete."""
    folder.mkdir(parents=True, exist_ok=True)
    dtypes = {tensor.dtype for tensor in sae.weights.values()}
    config: dict[str, Any] = {
        "architecture": sae.architecture,
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        "dtype": str(next(iter(dtypes))).removeprefix("torch."),
        "device": "cpu",
        "apply_b_dec_to_input": sae.apply_b_dec_to_input,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {"sae_lens_version": _FORMAT_VERSION, **sae.metadata},
        **sae.config(),
    }
    weights = folder / f".{SAE_WEIGHTS_FILE}.partial"
    save_file({name: tensor.contiguous().cpu() for name, tensor in sae.weights.items()}, weights)
    text = folder / f".{SAE_CONFIG_FILE}.partial"
    text.write_text(json.dumps(config, indent=1) + "\n", "utf-8")
    weights.replace(folder / SAE_WEIGHTS_FILE)
    text.replace(folder / SAE_CONFIG_FILE)


def load_sae(folder: Path, *, device: str = "cpu", dtype: torch.dtype = torch.float32) -> SAE:
    """Read the SAE in ``folder`` onto ``device`` in ``dtype``.

    A TopK SAE that ranks its latents by what they add to the output, as SAELens trains them
    (``rescale_acts_by_decoder_norm``), comes with the norms of its decoder folded into its weights: the same function.

    Raises:
        ArtefactError: a file is missing or damaged, or the SAE is of a kind that is not supported.
    """
    remedy = "Restore the folder, or rebuild it with `sensecheck build`."
    for name in (SAE_CONFIG_FILE, SAE_WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise ArtefactError(f"There is no SAE in {folder}: {name} is missing.", remedy)
    try:
        config = json.loads((folder / SAE_CONFIG_FILE).read_text("utf-8"))
        weights = load_file(folder / SAE_WEIGHTS_FILE, device=device)
        architecture = config.get("architecture")
    except Exception as error:  # json and safetensors raise different classes for damaged files
        raise ArtefactError(f"The SAE in {folder} is damaged: {error}.", remedy) from error
    _check_options(config, folder)
    options: dict[str, Any] = {"apply_b_dec_to_input": config.get("apply_b_dec_to_input", True)}
    try:
        if architecture == "topk":
            options["k"] = config["k"]
        # Older versions of SAELens write scaling factors of one, which mean nothing.
        unused = [name for name, tensor in weights.items() if name == "scaling_factor" and bool((tensor == 1).all())]
        weights = {name: tensor.to(dtype) for name, tensor in weights.items() if name not in unused}
        if config.get("rescale_acts_by_decoder_norm"):
            weights = _fold_decoder_norms(weights)
        sae = _TYPES[architecture](weights, config.get("metadata", {}), **options)
    except (InputError, KeyError, ValueError) as error:
        raise ArtefactError(f"The SAE in {folder} is damaged: {error}.", remedy) from error
    if unknown := sorted(weights.keys() - sae.weights.keys()):
        raise ArtefactError(
            f"The SAE in {folder} holds weights that a {architecture} SAE does not have: {', '.join(unknown)}.",
            "Load it with SAELens and save it again, or remove them if they are not needed.",
        )
    if len(sae.latents) != sae.d_sae:
        raise ArtefactError(f"The SAE in {folder} lists {len(sae.latents)} latents and holds {sae.d_sae}.", remedy)
    return sae


def _check_options(config: dict[str, Any], folder: Path) -> None:
    """Refuse what this program would read wrongly."""
    architecture = config.get("architecture")
    if architecture not in _TYPES:
        raise ArtefactError(f"SAE architecture '{architecture}' is not supported.", f"Supported: {', '.join(_TYPES)}.")
    for option in ("normalize_activations", "reshape_activations"):
        if (config.get(option) or "none") != "none":
            raise ArtefactError(
                f"The SAE in {folder} uses {option}={config[option]!r}.", "Fold the scaling into its weights first."
            )
    if config.get("rescale_acts_by_decoder_norm") and architecture != "topk":
        raise ArtefactError(f"The SAE in {folder} rescales by decoder norms.", "Fold the norms into its weights first.")


def _fold_decoder_norms(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Decoder rows of norm 1, and the norms in the encoder: SAELens' ``fold_W_dec_norm`` of a TopK SAE."""
    norms = weights["W_dec"].norm(dim=1).clamp(min=1e-8)
    return weights | {
        "W_enc": weights["W_enc"] * norms,
        "b_enc": weights["b_enc"] * norms,
        "W_dec": weights["W_dec"] / norms[:, None],
    }
