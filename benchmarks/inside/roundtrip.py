"""The SAELens side of :mod:`benchmarks.saelens_roundtrip`: reads our SAEs, writes its own, encodes and decodes with both.

In the folder: ``inputs.safetensors`` with ``x`` ``[n, d_in]``, and our SAEs in ``ours/NAME``. Written: SAELens' own SAEs in
``theirs/NAME``, and ``saelens.safetensors`` with ``SIDE/NAME/features`` and ``SIDE/NAME/reconstruction``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from sae_lens import SAE, TrainingSAE
from safetensors.torch import load_file, save_file

from benchmarks.inside import answer


@torch.no_grad()
def work(folder: Path, request: dict[str, Any]) -> dict[str, str]:
    """Do what ``request["write"]`` says: by name, ``config`` of the SAE, and whether it is one for training."""
    x = load_file(folder / "inputs.safetensors")["x"]
    for number, (name, case) in enumerate(request["write"].items()):
        write(folder / "theirs" / name, case["config"], training=case["training"], seed=number)
    results = {}
    for path in sorted([*(folder / "ours").iterdir(), *(folder / "theirs").iterdir()]):
        sae = SAE.load_from_disk(path, dtype="float32")
        features = sae.encode(x)
        results[f"{path.parent.name}/{path.name}/features"] = features.contiguous()
        results[f"{path.parent.name}/{path.name}/reconstruction"] = sae.decode(features).contiguous()
    save_file(results, folder / "saelens.safetensors")
    return {"torch": torch.__version__}


def write(path: Path, config: dict[str, Any], *, training: bool, seed: int) -> None:
    """Save an SAE with random weights, one for training the way SAELens saves it when training ends."""
    generator = torch.Generator().manual_seed(seed)
    sae = (TrainingSAE if training else SAE).from_dict(config)
    for name, parameter in sae.named_parameters():
        # Weights of a size that gives activations around one, with rows of different norms.
        size = 1 / config["d_in"] ** 0.5 if name.startswith("W_") else 0.3
        value = size * torch.randn(parameter.shape, generator=generator)
        parameter.copy_(value.abs() if name == "threshold" else value)
    if training:
        if hasattr(sae, "topk_threshold"):
            sae.topk_threshold.fill_(0.5)
        sae.save_inference_model(path)
    else:
        sae.save_model(path)


if __name__ == "__main__":
    answer(work)
