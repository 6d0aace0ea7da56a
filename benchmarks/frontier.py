"""Which dictionary is worth training: reconstruction against sparsity, width, beginning; ``python -m benchmarks.frontier MODEL``.

Dictionaries of several widths and k are trained on the packaged configuration's own harvest (made when it is not there), each
on the same number of tokens, so that they can be compared with each other; a full build trains longer. Per dictionary,
on the test split: the fraction of variance unexplained (FVU; also the mean over dimensions), mean active latents, latents
that fire on no test token. With ``--again`` each is trained twice with different seeds: the share of live latents that
have a counterpart whose activations correlate at least 0.7 (:mod:`sae_runtime.build.features.stability`), and the same
share between the first and the *untrained* beginning of the second, which is what training has to beat.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from benchmarks.sweep import scratch
from benchmarks.table import show
from sae_runtime.build.config import BuildConfig, TrainConfig, load_config
from sae_runtime.build.features.firings import Firings
from sae_runtime.build.features.stability import counterparts
from sae_runtime.build.harvest import load_residual
from sae_runtime.build.metrics import reconstruction_figures
from sae_runtime.build.pipeline import run_build
from sae_runtime.build.plan import BuildPlan
from sae_runtime.build.train import Trainer, threshold_sample
from sae_runtime.sae import SAE

_MATCH = 0.7  # correlation from which two latents count as the same


def splits(config: BuildConfig) -> dict[str, Tensor]:
    """The harvested activations ``[tokens, d]`` of each split, bfloat16."""
    run_build(config, until="harvest")
    harvest = BuildPlan.of(config).steps["harvest"]
    return {name: load_residual(harvest, name)["residual"] for name in ("train", "validation", "test")}


def trained(config: TrainConfig, data: dict[str, Tensor], seed: int, *, steps: int | None) -> SAE:
    """A dictionary after ``steps`` steps; 0 gives the untrained beginning."""
    trainer = Trainer(config, data["train"], seed=seed)
    if steps:
        with scratch() as checkpoint:
            trainer.run(checkpoint)
    return trainer.export(threshold_sample(data["validation"]), {})


def shared(mine: Firings, other: SAE, x: Tensor) -> float:
    """Share of the live latents of ``mine`` that have a counterpart in ``other``."""
    _, correlation = counterparts(mine, Firings.collect(other, x, lambda rows: None))
    return float((correlation[mine.counts > 0] >= _MATCH).mean())


def measured(config: TrainConfig, data: dict[str, Tensor], steps: int, *, again: bool) -> dict[str, Any]:
    """One row of the table."""
    tokens = steps * config.batch_tokens
    config = config.model_copy(update={"epochs": (tokens + 0.5) / len(data["train"])})
    sae = trained(config, data, 0, steps=steps)
    figures = reconstruction_figures(sae, data["test"])
    firings = Firings.collect(sae, data["test"], lambda rows: None)
    row = {
        "directions": config.directions,
        "width": config.width,
        "k": config.k,
        "tokens": tokens,
        "fvu": round(figures["fvu"], 4),
        "fvu_per_dimension": round(figures["fvu_per_dimension"], 4),
        "l0_%": round(100 * figures["l0_fraction"], 3),
        "silent_%": round(100 * float((firings.counts == 0).mean()), 2),
    }
    if again:
        row["shared_%"] = round(100 * shared(firings, trained(config, data, 1, steps=steps), data["test"]), 1)
        row["shared_untrained_%"] = round(100 * shared(firings, trained(config, data, 1, steps=0), data["test"]), 1)
    return row


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """FVU against active latents, one line per width and beginning, with the aims as a shaded corner."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "frontier"}):
        axes = (figure := Figure(figsize=(6, 4), layout="constrained")).subplots()
        for directions, width in dict.fromkeys((row["directions"], row["width"]) for row in rows):
            line = [row for row in rows if (row["directions"], row["width"]) == (directions, width)]
            line.sort(key=lambda row: row["l0_%"])
            label = f"width {width}" + (", random beginning" if directions == "random" else "")
            axes.plot([r["l0_%"] for r in line], [r["fvu"] for r in line], marker="o", label=label)
        axes.fill_between([0, 1], 0.05, color="#2b6a2f", alpha=0.12, linewidth=0, label="aims")
        axes.set(xlabel="active latents, % of the width (L0)", ylabel="variance unexplained (FVU)", xlim=(0, 1.1))
        axes.set_ylim(bottom=0)
        axes.grid(color="#d5dbe1")
        axes.legend(frameon=False)
        figure.savefig(path, metadata={"Date": None})


def main(
    model: str,
    corpus: Annotated[Path | None, typer.Option(help="Folder of the training text.")] = None,
    width: Annotated[list[int] | None, typer.Option(help="Latents; may be repeated.")] = None,
    share: Annotated[list[float] | None, typer.Option(help="k in percent of the width; may be repeated.")] = None,
    directions: Annotated[list[str] | None, typer.Option(help="data, random; may be repeated.")] = None,
    steps: Annotated[int, typer.Option(help="Steps of each training.")] = 800,
    again: Annotated[bool, typer.Option("--again", help="Train each twice and compare.")] = False,
    svg: Annotated[Path | None, typer.Option(help="Write a plot there.")] = None,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Train, measure, print."""
    config = load_config(model, corpus_root=corpus)
    data = splits(config)
    d = data["train"].shape[1]
    rows = []
    with torch.no_grad():
        for start, size, percent in product(directions or ["data"], width or [8 * d, 16 * d], share or [0.5, 1.0]):
            changes = {"directions": start, "width": size, "k": int(size * percent / 100)}
            settings = TrainConfig.model_validate({**config.train.model_dump(), **changes})
            rows.append(measured(settings, data, steps, again=again))
            print(rows[-1], flush=True)
    if svg:
        plot(rows, svg)
    show(rows, as_json=as_json)


if __name__ == "__main__":
    typer.run(main)
