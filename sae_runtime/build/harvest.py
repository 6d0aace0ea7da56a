"""Harvest stage: the residual stream of every content token, sharded on disk in bfloat16."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from sae_runtime.build.corpus import SPLITS, load_sequences
from sae_runtime.build.stages import Stage, open_tensors, read_tensors, write_tensors
from sae_runtime.build.workers import LocalWorkers, Workers, complete
from sae_runtime.engines.features import content_mask

PLACES = ("token", "sequence", "position")
_COLUMNS = ("residual", *PLACES)
_SHARD_TOKENS = 65_536


class Engine(Protocol):
    """Captures residual streams; see :class:`~sae_runtime.engines.transformers.TransformersEngine`."""

    def residual(self, sequences: list[list[int]]) -> list[torch.Tensor]:
        """``[tokens, d_model]`` per sequence."""

    def close(self) -> None:
        """Free what the engine holds."""


@dataclass(frozen=True)
class Shard:
    """A task of the harvest: the sequences of one shard, each with its index in the split, shortest first."""

    path: Path
    rows: list[tuple[int, list[int]]]

    @property
    def size(self) -> int:
        """Tokens, attention sinks among them."""
        return sum(len(ids) for _, ids in self.rows)


@dataclass(frozen=True)
class Capture:
    """The harvest's job: ``open_engine`` makes the engine, ``batch_tokens`` are the padded tokens of a forward pass."""

    open_engine: Callable[[], Engine]
    batch_tokens: int

    @contextmanager
    def open(self) -> Iterator[Callable[[Shard], None]]:
        """See :class:`.workers.Job`."""
        engine = self.open_engine()
        try:
            yield lambda shard: write_tensors(shard.path, _capture(engine, shard.rows, self.batch_tokens))
        finally:
            engine.close()


def run_harvest(
    stage: Stage,
    corpus: Stage,
    open_engine: Callable[[], Engine],
    *,
    batch_tokens: int,
    train_tokens: int | None = None,
    workers: Workers | None = None,
) -> None:
    """Capture all splits of ``corpus``; a killed run goes on with the first missing shard.

    A shard holds ``residual`` bfloat16 ``[n, d_model]`` and, per row, ``token`` int32, ``sequence`` int32 (index in the
    split) and ``position`` int32. Attention sinks are left out.

    Args:
        stage: where shards go.
        corpus: finished corpus stage.
        open_engine: called when something is to be captured, once per process.
        batch_tokens: padded tokens per forward pass.
        train_tokens: of the train split take whole shards up to about so many tokens; None: all.
        workers: who captures; None: this process. For others ``open_engine`` must be something that can be pickled.
    """
    plan = _plan(stage.folder, corpus, train_tokens)
    tasks = [shard for shards in plan.values() for shard in shards]
    speed = complete(workers or LocalWorkers(), Capture(open_engine, batch_tokens), tasks, "harvest", "tokens")
    stage.finish({
        "tokens": sum(shard.size for shard in tasks),
        "tokens_per_second": speed and round(speed),
        "shards": {split: len(shards) for split, shards in plan.items()},
    })  # fmt: skip


def _plan(folder: Path, corpus: Stage, train_tokens: int | None) -> dict[str, list[Shard]]:
    """Shards by split."""
    most = {"train": None if train_tokens is None else -(-train_tokens // _SHARD_TOKENS)}
    return {
        split: [
            Shard(_file(folder, split, part), rows)
            for part, rows in enumerate(shards(load_sequences(corpus, split))[: most.get(split)])
        ]
        for split in SPLITS
    }


def disk_estimate(tokens: int, d_model: int) -> int:
    """Bytes of the shards of ``tokens`` tokens."""
    return tokens * (2 * d_model + 12)


def load_counts(stage: Stage) -> dict[str, int]:
    """Activations in each split of a finished harvest, attention sinks left out."""
    shards = stage.summary()["shards"]
    return {split: sum(_rows(stage, split, part) for part in range(count)) for split, count in shards.items()}


def load_residual(stage: Stage, split: str) -> dict[str, torch.Tensor]:
    """All rows of one split, see :func:`run_harvest`.

    Raises:
        ArtefactError: shards of a finished harvest are gone or damaged.
    """
    return load_head(stage, split, sys.maxsize)


def load_head(stage: Stage, split: str, tokens: int, names: Sequence[str] = _COLUMNS) -> dict[str, torch.Tensor]:
    """The first rows of one split: whole shards, at least ``tokens`` rows if there are as many.

    Args:
        stage: a finished harvest.
        split: which.
        tokens: so many rows at least.
        names: columns that are wanted; :data:`PLACES` are all but the activations.

    Raises:
        ArtefactError: see :func:`load_residual`.
    """
    parts: list[dict[str, torch.Tensor]] = []
    for part in range(stage.summary()["shards"][split]):
        parts.append(read_tensors(_file(stage.folder, split, part), names))
        if sum(len(part[names[0]]) for part in parts) >= tokens:
            break
    return {name: torch.cat([part[name] for part in parts]) for name in names}


def load_rows(stage: Stage, split: str, start: int, stop: int) -> torch.Tensor:
    """Activations bfloat16 ``[stop - start, d_model]`` of some rows of one split, numbered over all its shards."""
    parts, first = [], 0
    for part in range(stage.summary()["shards"][split]):
        count = _rows(stage, split, part)
        if first < stop and start < first + count:
            with open_tensors(_file(stage.folder, split, part)) as shard:
                parts.append(shard.get_slice("residual")[max(0, start - first) : min(count, stop - first)])
        first += count
    return torch.cat(parts)


def shards(sequences: list[list[int]]) -> list[list[tuple[int, list[int]]]]:
    """Sequences with their indices in shards of about :data:`_SHARD_TOKENS`, sorted by length inside each."""
    shards: list[list[tuple[int, list[int]]]] = []
    room = 0
    for item in enumerate(sequences):
        if room <= 0:
            shards.append([])
            room = _SHARD_TOKENS
        shards[-1].append(item)
        room -= len(item[1])
    return [sorted(shard, key=lambda item: len(item[1])) for shard in shards]


def _rows(stage: Stage, split: str, part: int) -> int:
    with open_tensors(_file(stage.folder, split, part)) as shard:
        return shard.get_slice("token").get_shape()[0]


def _file(folder: Path, split: str, part: int) -> Path:
    return folder / f"{split}-{part:04d}.safetensors"


def _capture(engine: Engine, rows: list[tuple[int, list[int]]], batch_tokens: int) -> dict[str, torch.Tensor]:
    kept: dict[str, list[torch.Tensor]] = {"residual": [], "token": [], "sequence": [], "position": []}
    for batch in batches(rows, batch_tokens):
        for (index, ids), residual in zip(batch, engine.residual([ids for _, ids in batch]), strict=True):
            positions = content_mask(residual).nonzero().squeeze(1).cpu()
            kept["residual"].append(residual[positions].to(torch.bfloat16).cpu())
            kept["token"].append(torch.tensor(ids, dtype=torch.int32)[positions])
            kept["sequence"].append(torch.full((len(positions),), index, dtype=torch.int32))
            kept["position"].append(positions.to(torch.int32))
    return {name: torch.cat(parts) for name, parts in kept.items()}


def batches(rows: list[tuple[int, list[int]]], batch_tokens: int) -> list[list[tuple[int, list[int]]]]:
    """Neighbours in length, at most ``batch_tokens`` padded tokens together."""
    batches: list[list[tuple[int, list[int]]]] = []
    for item in rows:
        if not batches or (len(batches[-1]) + 1) * len(item[1]) > batch_tokens:
            batches.append([])
        batches[-1].append(item)
    return batches
