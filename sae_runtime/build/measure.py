"""Measure step: how much of the model the dictionary keeps, on the untouched test split."""

from __future__ import annotations

from sae_runtime.build.corpus import load_sequences
from sae_runtime.build.harvest import load_head, load_residual
from sae_runtime.build.metrics import cross_entropy_figures, dead_fraction, reconstruction_figures, token_means
from sae_runtime.build.plan import BuildPlan
from sae_runtime.build.stages import Stage
from sae_runtime.progress import progress
from sae_runtime.sae import SAE

_CE_TOKENS = 8_000
_DEAD_WINDOW = 500_000


def run_measure(stage: Stage, plan: BuildPlan, sae: SAE) -> None:
    """Reconstruction, sparsity, dead latents, cross-entropy; see :mod:`.metrics`."""
    harvest, corpus = plan.steps["harvest"], plan.steps["corpus"]
    test = load_residual(harvest, "test")
    window = load_head(harvest, "train", _DEAD_WINDOW)
    means = token_means(window["residual"], window["token"])
    sequences: list[list[int]] = []
    for ids in load_sequences(corpus, "test"):
        if sum(map(len, sequences)) >= _CE_TOKENS:
            break
        sequences.append(ids)
    with progress("measure", len(test["token"]) + len(window["token"])) as advance:
        reconstruction = reconstruction_figures(sae, test["residual"], test["token"], means, advance)
        dead = dead_fraction(sae, window["residual"], advance)
    figures = {
        "layer": plan.config.layer,
        "d_sae": sae.d_sae,
        "k": plan.config.train.k,
        **reconstruction,
        "test_tokens": len(test["token"]),
        "dead_fraction": dead,
        "dead_window_tokens": len(window["token"]),
        **cross_entropy_figures(plan.model, plan.config.layer, sae, sequences),
        "tokens_trained": plan.steps["train"].summary()["tokens_trained"],
        "tokens_distinct": corpus.summary()["tokens"]["train"],
    }
    stage.finish({name: round(value, 5) if isinstance(value, float) else value for name, value in figures.items()})
