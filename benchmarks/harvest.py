"""Harvest against the bare forward pass: ``python -m benchmarks.harvest MODEL --corpus PATH``.

Both compute the same padded batches of the same sequences up to the same layer, in turn. ``bare`` is the truncated model on
tensors that were prepared beforehand, its output thrown away; ``harvest`` is :func:`sae_runtime.build.harvest.run_harvest`
into a temporary folder: batching, masks, sinks, conversion, shards on disk. Reported are medians over rounds of tokens
(without padding) per second, and the ratio.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Annotated

import torch
import typer

from benchmarks.table import show
from sae_runtime.build.config import BuildConfig, load_config
from sae_runtime.build.corpus import SPLITS, load_sequences, run_corpus
from sae_runtime.build.harvest import batches, run_harvest, shards
from sae_runtime.build.stages import Stage, write_tensors
from sae_runtime.engines.chat import ChatEncoder
from sae_runtime.engines.dtype import compute_dtype
from sae_runtime.engines.transformers import TransformersEngine
from sae_runtime.models import resolve_model
from sae_runtime.progress import progress


class Folder(Stage):
    """A stage somewhere else."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder


def small_corpus(folder: Path, sequences: list[list[int]]) -> Stage:
    """A corpus stage of these sequences, all in the train split."""
    stage = Folder(folder)
    for split in SPLITS:
        rows = sequences if split == "train" else sequences[:1]
        write_tensors(
            folder / f"{split}.safetensors",
            {
                "tokens": torch.tensor([token for ids in rows for token in ids], dtype=torch.int32),
                "lengths": torch.tensor([len(ids) for ids in rows], dtype=torch.int32),
            },
        )
    return stage


def bare(engine: TransformersEngine, sequences: list[list[int]], batch_tokens: int) -> float:
    """Seconds of the forward passes alone."""
    prepared = []
    for shard in shards(sequences):
        for batch in batches(shard, batch_tokens):
            width = max(len(ids) for _, ids in batch)
            padded = torch.tensor([ids + [0] * (width - len(ids)) for _, ids in batch])
            mask = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for _, ids in batch])
            prepared.append((padded, mask if int(mask.sum()) < mask.numel() else None))
    began = perf_counter()
    for padded, attention in prepared:
        engine.forward(padded, attention)
    return perf_counter() - began


def training_text(config: BuildConfig, model: Path, tokens: int) -> list[list[int]]:
    """The first sequences of the training text that make ``tokens`` tokens together."""
    taken: list[list[int]] = []
    total = 0
    for ids in load_sequences(run_corpus(config, ChatEncoder(model)), "train"):
        if total >= tokens:
            break
        taken.append(ids)
        total += len(ids)
    return taken


def main(
    model: str,
    corpus: Annotated[Path | None, typer.Option(help="Folder of the training text.")] = None,
    tokens: Annotated[int, typer.Option(help="Tokens per round.")] = 40_000,
    rounds: int = 3,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Measure, print."""
    config = load_config(model, corpus_root=corpus)
    folder = resolve_model(config.model).path
    sequences = training_text(config, folder, tokens)
    total = sum(map(len, sequences))
    engine = TransformersEngine(folder, config.layer, dtype=compute_dtype(config.dtype))
    engine.residual(sequences[:4])  # warm up
    seen: dict[str, list[float]] = {"bare": [], "harvest": []}
    with progress("rounds", rounds) as advance:
        for _ in range(rounds):
            seen["bare"].append(bare(engine, sequences, config.harvest_batch_tokens))
            with tempfile.TemporaryDirectory() as scratch:
                source, target = small_corpus(Path(scratch) / "corpus", sequences), Folder(Path(scratch) / "harvest")
                began = perf_counter()
                run_harvest(target, source, lambda: _Kept(engine), batch_tokens=config.harvest_batch_tokens)
                seen["harvest"].append(perf_counter() - began)
            advance(1)
    speeds = {name: total / median(seconds) for name, seconds in seen.items()}
    rows = [
        {"arm": name, "tokens per second": round(speed), "ratio to bare": round(speed / speeds["bare"], 3)}
        for name, speed in speeds.items()
    ]
    show(rows, as_json=as_json)


class _Kept:
    """An engine that survives the harvest."""

    def __init__(self, engine: TransformersEngine) -> None:
        self.residual = engine.residual

    def close(self) -> None:
        """Nothing: it is used again."""


if __name__ == "__main__":
    typer.run(main)
