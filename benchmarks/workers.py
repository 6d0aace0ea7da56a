"""Harvest by Ray workers against one process: ``OMP_NUM_THREADS=1 python -m benchmarks.workers MODEL --corpus PATH``.

Both arms capture the same shards in turn, with as many threads per process (``OMP_NUM_THREADS``); each loads the model and writes
files, which must be the same byte by byte. Starting the cluster, and its first round, in which the processes begin, are left
out. Reported are medians over rounds of tokens per second, and the ratio to one process. With as many workers as processors the
best that can be expected is their number.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Annotated

import torch
import typer

from benchmarks.harvest import Folder, small_corpus, training_text
from benchmarks.table import show
from sae_runtime.build.config import load_config
from sae_runtime.build.harvest import run_harvest
from sae_runtime.build.stages import Stage
from sae_runtime.build.workers import LocalWorkers, Workers, open_workers
from sae_runtime.engines.dtype import compute_dtype
from sae_runtime.engines.transformers import TransformersEngine
from sae_runtime.models import resolve_model


def main(
    model: str,
    corpus: Annotated[Path | None, typer.Option(help="Folder of the training text.")] = None,
    workers: Annotated[str, typer.Option(help="The arm that is compared with one process.")] = "ray:2",
    tokens: Annotated[int, typer.Option(help="Tokens per round; a task has 65,536.")] = 262_144,
    rounds: int = 3,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Measure, compare the files, print."""
    config = load_config(model, corpus_root=corpus)
    folder = resolve_model(config.model).path.absolute()
    sequences = training_text(config, folder, tokens)
    total = sum(map(len, sequences))
    engine = partial(TransformersEngine, folder, config.layer, dtype=compute_dtype(config.dtype))
    seen: dict[str, list[float]] = {"local": [], workers: []}
    with tempfile.TemporaryDirectory() as scratch, open_workers(workers) as others:
        source = small_corpus(Path(scratch) / "corpus", sequences)

        def harvest(arm: str, crew: Workers) -> tuple[Path, float]:
            target: Stage = Folder(Path(tempfile.mkdtemp(dir=scratch)) / arm.replace("/", "-"))
            began = perf_counter()
            run_harvest(target, source, engine, batch_tokens=config.harvest_batch_tokens, workers=crew)
            return target.folder, perf_counter() - began

        harvest(workers, others)
        for _ in range(rounds):
            made = {arm: harvest(arm, crew) for arm, crew in (("local", LocalWorkers()), (workers, others))}
            files = [{path.name: path.read_bytes() for path in one.glob("*.safetensors")} for one, _ in made.values()]
            if files[0] != files[1]:
                raise SystemExit("The arms made different files.")
            for arm, (_, seconds) in made.items():
                seen[arm].append(seconds)
    speeds = {arm: total / median(seconds) for arm, seconds in seen.items()}
    rows = [
        {
            "workers": arm,
            "threads": torch.get_num_threads(),
            "tokens per second": round(speed),
            "ratio to local": round(speed / speeds["local"], 3),
        }
        for arm, speed in speeds.items()
    ]
    show(rows, as_json=as_json)


if __name__ == "__main__":
    typer.run(main)
