"""The arm of :mod:`benchmarks.trainer` with our trainer, in a process of its own like the other one."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from safetensors.torch import load_file

from benchmarks.inside import answer
from sae_runtime.build.config import TrainConfig
from sae_runtime.build.train import Trainer
from sae_runtime.sae import save_sae


def work(folder: Path, request: dict[str, Any]) -> dict[str, Any]:
    """Train on the activations named in ``request``; leaves the SAE in ``folder/sae``."""
    torch.set_num_threads(request["threads"])
    data = load_file(request["activations"])
    x, tokens = data["train"], request["steps"] * request["batch_tokens"]
    hyper = ("width", "k", "batch_tokens", "learning_rate", "warmup_steps", "decay_fraction", "dead_after_tokens")
    config = TrainConfig(
        **{name: request[name] for name in hyper},
        epochs=(tokens + 0.5) / len(x),  # half a token, so that rounding does not cost a step
    )
    trainer = Trainer(config, x, seed=request["seed"])
    began: list[float] = []
    step = trainer.train_step

    def timed(x: torch.Tensor) -> float:
        began.append(perf_counter())
        return step(x)

    trainer.train_step = timed  # type: ignore[method-assign]
    trainer.run(folder / "checkpoint.safetensors")
    save_sae(trainer.export(data["validation"].float(), {"model_name": "benchmark"}), folder / "sae")
    return {"seconds": [after - before for before, after in pairwise(began)], "steps": len(began)}


if __name__ == "__main__":
    answer(work)
