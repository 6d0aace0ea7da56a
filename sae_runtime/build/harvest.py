"""Harvest stage: the residual stream of every content token, sharded on disk in bfloat16."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Protocol

import torch
from safetensors import safe_open

from sae_runtime.build.corpus import SPLITS, load_sequences
from sae_runtime.build.stages import Stage, read_tensors, write_tensors
from sae_runtime.engines.features import content_mask
from sae_runtime.progress import progress

_SHARD_TOKENS = 65_536


class Engine(Protocol):
    """Captures residual streams; see :class:`~sae_runtime.engines.transformers.TransformersEngine`."""

    def residual(self, sequences: list[list[int]]) -> list[torch.Tensor]:
        """``[tokens, d_model]`` per sequence."""

    def close(self) -> None:
        """Free what the engine holds."""


def run_harvest(
    stage: Stage,
    corpus: Stage,
    open_engine: Callable[[], Engine],
    *,
    batch_tokens: int,
    train_tokens: int | None = None,
) -> None:
    """Capture all splits of ``corpus``; a killed run goes on with the first missing shard.

    A shard holds ``residual`` bfloat16 ``[n, d_model]`` and, per row, ``token`` int32, ``sequence`` int32 (index in the
    split) and ``position`` int32. Attention sinks are left out.

    Args:
        stage: where shards go.
        corpus: finished corpus stage.
        open_engine: called when something is to be captured.
        batch_tokens: padded tokens per forward pass.
        train_tokens: of the train split take whole shards up to about so many tokens; None: all.
    """
    plan = _plan(corpus, train_tokens)
    tokens = sum(len(ids) for _, _, rows in plan for _, ids in rows)
    engine: Engine | None = None
    began, fresh = time.monotonic(), 0
    with progress("harvest", tokens) as advance:
        for split, part, rows in plan:
            path = stage.folder / f"{split}-{part:04d}.safetensors"
            size = sum(len(ids) for _, ids in rows)
            if not path.exists():
                if engine is None:
                    engine = open_engine()
                    began = time.monotonic()
                write_tensors(path, _capture(engine, rows, batch_tokens))
                fresh += size
            advance(size, f"{fresh / (time.monotonic() - began):.0f} tokens/s")
    seconds = time.monotonic() - began
    if engine is not None:
        engine.close()
    stage.finish({
        "tokens": tokens,
        "tokens_per_second": round(fresh / seconds) if fresh else None,
        "shards": {name: sum(split == name for split, _, _ in plan) for name in SPLITS},
    })  # fmt: skip


def _plan(corpus: Stage, train_tokens: int | None) -> list[tuple[str, int, list[tuple[int, list[int]]]]]:
    """Split, number and sequences of each shard."""
    plan = [(split, part, rows) for split in SPLITS for part, rows in enumerate(shards(load_sequences(corpus, split)))]
    most = sys.maxsize if train_tokens is None else -(-train_tokens // _SHARD_TOKENS)
    return [item for item in plan if item[0] != "train" or item[1] < most]


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


def load_head(stage: Stage, split: str, tokens: int) -> dict[str, torch.Tensor]:
    """The first rows of one split: whole shards, at least ``tokens`` rows if there are as many.

    Raises:
        ArtefactError: see :func:`load_residual`.
    """
    parts: list[dict[str, torch.Tensor]] = []
    for part in range(stage.summary()["shards"][split]):
        parts.append(read_tensors(stage.folder / f"{split}-{part:04d}.safetensors"))
        if sum(len(part["token"]) for part in parts) >= tokens:
            break
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


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
    with safe_open(stage.folder / f"{split}-{part:04d}.safetensors", "pt") as shard:
        return shard.get_slice("token").get_shape()[0]


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
