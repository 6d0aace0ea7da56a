"""The SAELens arm of :mod:`benchmarks.trainer`: its own trainer, driven as its runners drive it (``SAETrainer.fit``)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
from sae_lens.config import SAETrainerConfig
from sae_lens.training.sae_trainer import SAETrainer
from safetensors.torch import load_file

from benchmarks.inside import answer
from benchmarks.inside.feed import TimedFeed


def work(folder: Path, request: dict[str, Any]) -> dict[str, Any]:
    """Train on the activations named in ``request``; leaves the SAE in ``folder/sae``."""
    torch.set_num_threads(request["threads"])
    torch.manual_seed(request["seed"])
    x = load_file(request["activations"])["train"]
    steps, batch, rate = request["steps"], request["batch_tokens"], request["learning_rate"]
    sae = BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(d_in=x.shape[1], d_sae=request["width"], k=request["k"]))
    feed = TimedFeed(x, batch, request["seed"])
    config = SAETrainerConfig(
        total_training_samples=steps * batch,
        train_batch_size_samples=batch,
        lr=rate,
        lr_end=rate / 10,  # not used by a constant rate, but may not be missing
        lr_warm_up_steps=request["warmup_steps"],
        lr_decay_steps=int(steps * request["decay_fraction"]),
        dead_feature_window=math.ceil(request["dead_after_tokens"] / batch),
    )
    trainer = SAETrainer(config, sae, feed)
    trainer.fit()
    sae.save_inference_model(folder / "sae")
    return {"seconds": feed.seconds, "steps": trainer.n_training_steps}


if __name__ == "__main__":
    answer(work)
