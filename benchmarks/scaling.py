"""What capture and encoding cost on larger models: a paper model, and a check of it here. ``python -m benchmarks.scaling``.

Per prompt token, with model parameters N, width d, latents m, active latents k and activations of b bytes:

- the model's forward pass: 2 N FLOPs;
- capture: d b bytes into the cache (all tokens, read or not), beside the KV cache's own bytes;
- encoding: 2 d m FLOPs for all latents; a reading of mentions needs a few dozen latents, 2 d 48 FLOPs a concept;
- the result: 12 k bytes for all latents (position, latent, value), sent once per inspected prompt.

The check times the encoder on the shipped dictionary and compares with 2 d m FLOPs at the speed of a large matrix product.
"""

from __future__ import annotations

from statistics import median
from time import perf_counter
from typing import NamedTuple

import torch
import typer

from sae_runtime.engines.features import encode_prompt
from sae_runtime.models.manifest import SMALL_MODEL
from sae_runtime.paths import artefacts_for
from sae_runtime.sae import load_sae

_TOKENS = 512
_SIGNATURE = 48  # latents of one concept's signatures
_LATENTS = (16_384, 65_536, 131_072)
_ACTIVE = 0.01  # share of latents that are active


class Model(NamedTuple):
    """A decoder: parameters, width, layers, and numbers per token that each layer's KV cache holds."""

    name: str
    parameters: float
    width: int
    layers: int
    kv: int


_MODELS = (
    Model("1B (Llama 3.2)", 1.24e9, 2048, 16, 2 * 8 * 64),
    Model("8B (Llama 3.1)", 8.0e9, 4096, 32, 2 * 8 * 128),
    Model("70B (Llama 3.1)", 70.6e9, 8192, 80, 2 * 8 * 128),
)


def paper() -> list[dict[str, str]]:
    """One row per model and number of latents, in bfloat16."""
    rows = []
    for model in _MODELS:
        for latents in _LATENTS:
            encode = 2 * model.width * latents
            rows.append({
                "model": model.name,
                "latents": f"{latents:,}",
                "cache bytes": f"{2 * model.width:,} ({model.width / (model.layers * model.kv):.1%} of KV)",
                "encode all, of forward": f"{encode / (2 * model.parameters):.2%}",
                "encode one mention": f"{_SIGNATURE / latents * encode / (2 * model.parameters):.5%}",
                "encoder weights": f"{2 * model.width * latents / 1e9:.2f} GB",
                "result bytes": f"{12 * _ACTIVE * latents:,.0f}",
            })  # fmt: skip
    return rows


def seconds(run: object) -> float:
    """Median of 20 calls after a warm-up."""
    times = []
    for _ in range(23):
        began = perf_counter()
        run()  # type: ignore[operator]
        times.append(perf_counter() - began)
    return median(times[3:])


def check() -> dict[str, float]:
    """Encoding times of the shipped dictionary beside the prediction, in milliseconds for 512 tokens."""
    sae = load_sae(artefacts_for(SMALL_MODEL)).to(dtype=torch.float32)
    residual = torch.randn(_TOKENS, sae.d_in)
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    speed = 2 * 2048**3 / seconds(lambda: a @ b)
    few = sae.latents[:_SIGNATURE]
    return {
        "gigaflops_of_a_matrix_product": speed / 1e9,
        "all_latents_predicted_ms": 2 * sae.d_in * sae.d_sae * _TOKENS / speed * 1e3,
        "all_latents_encode_ms": seconds(lambda: sae.encode(residual)) * 1e3,
        "all_latents_to_sparse_ms": seconds(lambda: encode_prompt(sae, residual)) * 1e3,
        "one_concept_predicted_ms": 2 * sae.d_in * _SIGNATURE * _TOKENS / speed * 1e3,
        "one_concept_to_sparse_ms": seconds(lambda: encode_prompt(sae, residual, few)) * 1e3,
    }


def main() -> None:
    """Print both as Markdown."""
    rows = paper()
    print("| " + " | ".join(rows[0]) + " |\n" + "|---" * len(rows[0]) + "|")
    for row in rows:
        print("| " + " | ".join(row.values()) + " |")
    print()
    for name, value in check().items():
        print(f"- {name.replace('_', ' ')}: {value:.2f}")


if __name__ == "__main__":
    typer.run(main)
