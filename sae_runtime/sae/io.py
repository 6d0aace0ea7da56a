"""SAELens' on-disk format (version 6): ``cfg.json`` beside ``sae_weights.safetensors``. No pickle is ever read."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sae_runtime.disk import writing
from sae_runtime.errors import ArtefactError, InputError
from sae_runtime.numbers import MOST_LATENTS
from sae_runtime.paths import SAE_CONFIG_FILE, SAE_WEIGHTS_FILE
from sae_runtime.sae.types import SAE, GatedSAE, JumpReLUSAE, ReLUSAE, TopKSAE

_TYPES: dict[str, type[SAE]] = {cls.architecture: cls for cls in (ReLUSAE, JumpReLUSAE, GatedSAE, TopKSAE)}
_FORMAT_VERSION = "6.0.0"


def save_sae(sae: SAE, folder: Path) -> None:
    """Write ``sae`` to ``folder``; each file appears only when complete.

    Raises:
        ArtefactError: the disk is full, or may not be written to.
    """
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
    partials = {name: folder / f".{name}.partial" for name in (SAE_WEIGHTS_FILE, SAE_CONFIG_FILE)}
    with writing(folder):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            tensors = {name: tensor.contiguous().cpu() for name, tensor in sae.weights.items()}
            save_file(tensors, partials[SAE_WEIGHTS_FILE])
            partials[SAE_CONFIG_FILE].write_text(json.dumps(config, indent=1) + "\n", "utf-8")
            for name, partial in partials.items():
                partial.replace(folder / name)
        except BaseException:
            for partial in partials.values():
                with suppress(OSError):
                    partial.unlink(missing_ok=True)
            raise


def load_sae(folder: Path, *, device: str = "cpu", dtype: torch.dtype = torch.float32, compact: bool = False) -> SAE:
    """Read the SAE in ``folder`` onto ``device`` in ``dtype``.

    ``compact`` is for serving, where few latents of a large dictionary are encoded at a time: the encoder is kept as it is
    stored, laid out by latent, and what is used is converted when it is used; on the CPU the decoder stays in the file. The
    results are the same. SAEs whose latents depend on each other are read in ``dtype`` all the same.

    A TopK SAE that ranks its latents by what they add to the output, as SAELens trains them
    (``rescale_acts_by_decoder_norm``), comes with the norms of its decoder folded into its weights: the same function.

    Raises:
        ArtefactError: a file is missing or damaged, a weight is infinite or no number, a latent's number makes no sense,
            or the SAE is of a kind that is not supported.
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
            if type(config["k"]) is not int:
                raise ValueError(f"k is {config['k']!r}")
            options["k"] = config["k"]
        # Older versions of SAELens write scaling factors of one, which mean nothing.
        unused = [name for name, tensor in weights.items() if name == "scaling_factor" and bool((tensor == 1).all())]
        compact = compact and _TYPES[architecture].independent
        weights = {
            name: _by_latent(name, tensor) if compact else tensor.to(dtype)
            for name, tensor in weights.items()
            if name not in unused
        }
        if config.get("rescale_acts_by_decoder_norm"):
            weights = _fold_decoder_norms(weights)
        sae = _TYPES[architecture](weights, _metadata(config), **options)
        sae.dtype = dtype
    except (InputError, LookupError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise ArtefactError(f"The SAE in {folder} is damaged: {error}.", remedy) from error
    if unknown := sorted(weights.keys() - sae.weights.keys()):
        raise ArtefactError(
            f"The SAE in {folder} holds weights that a {architecture} SAE does not have: {', '.join(unknown)}.",
            "Load it with SAELens and save it again, or remove them if they are not needed.",
        )
    if len(sae.latents) != sae.d_sae:
        raise ArtefactError(f"The SAE in {folder} lists {len(sae.latents)} latents and holds {sae.d_sae}.", remedy)
    looked_at = sae.weights.keys() - (
        {"W_dec"} if compact else set()
    )  # what stays in the file takes part in no reading
    if broken := sorted(name for name in looked_at if not _finite(sae.weights[name])):
        raise ArtefactError(
            f"The SAE in {folder} is damaged: numbers in {', '.join(broken)} are infinite or none at all.", remedy
        )
    return sae


def _finite(tensor: Tensor) -> bool:
    """Whether all numbers are; without a second tensor of that size."""
    return not tensor.numel() or all(bool(torch.isfinite(end)) for end in torch.aminmax(tensor))


def _metadata(config: dict[str, Any]) -> dict[str, Any]:
    """The SAE's metadata, if its latents can be numbered by them.

    Raises:
        ValueError: they cannot.
    """
    metadata = config.get("metadata") or {}
    latents = metadata.get("sensecheck_latents") or []
    if not all(type(latent) is int and 0 <= latent < MOST_LATENTS for latent in latents):
        raise ValueError("its latents are no numbers of latents")
    if len(set(latents)) < len(latents):
        raise ValueError("it lists a latent twice")
    return metadata


def _by_latent(name: str, tensor: Tensor) -> Tensor:
    """A weight of a mapped file in memory, ``W_enc`` with each latent's numbers together; ``W_dec`` stays in the file."""
    if name == "W_enc":
        return tensor.T.clone(memory_format=torch.contiguous_format).T
    return tensor if name == "W_dec" else tensor.clone()


def _check_options(config: dict[str, Any], folder: Path) -> None:
    """Refuse what this program would read wrongly."""
    architecture = config.get("architecture")
    if not isinstance(architecture, str) or architecture not in _TYPES:
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
