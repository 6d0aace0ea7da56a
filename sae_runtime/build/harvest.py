"""Harvest stage: the residual stream of every content token, sharded on disk in bfloat16."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from sae_runtime.build.config import BuildConfig
from sae_runtime.build.corpus import SPLITS, load_sequences
from sae_runtime.build.stages import Stage, read_tensors, stage_key, write_tensors
from sae_runtime.engines.features import content_mask
from sae_runtime.engines.transformers import TransformersEngine
from sae_runtime.models import ResolvedModel, fingerprint_model
from sae_runtime.progress import console, progress

_SHARD_TOKENS = 65_536


def run_harvest(config: BuildConfig, model: ResolvedModel, corpus: Stage) -> Stage:
    """Capture all splits of ``corpus``; a killed run goes on with the first missing shard.

    A shard holds ``residual`` bfloat16 ``[n, d_model]`` and, per row, ``token`` int32, ``sequence`` int32 (index in the
    split) and ``position`` int32. Attention sinks are left out.
    """
    fingerprint = fingerprint_model(model.path)
    stage = Stage(config.model, "harvest", stage_key(corpus.key, config.layer, fingerprint.model_dump()))
    if stage.done:
        return stage
    plan = [(split, part, rows) for split in SPLITS for part, rows in enumerate(_shards(load_sequences(corpus, split)))]
    tokens = sum(len(ids) for _, _, rows in plan for _, ids in rows)
    engine: TransformersEngine | None = None
    console.print(f"harvest needs about {tokens * _width(model.path) * 2 / 1e9:.1f} GB in {stage.folder}")
    began, fresh = time.monotonic(), 0
    with progress("harvest", tokens) as advance:
        for split, part, rows in plan:
            path = stage.folder / f"{split}-{part:04d}.safetensors"
            size = sum(len(ids) for _, ids in rows)
            if not path.exists():
                engine = engine or TransformersEngine(model.path, config.layer)
                write_tensors(path, _capture(engine, rows, config.harvest_batch_tokens))
                fresh += size
            advance(size, f"{fresh / (time.monotonic() - began):.0f} tokens/s")
    seconds = time.monotonic() - began
    stage.finish({"tokens": tokens, "tokens_per_second": round(fresh / seconds) if fresh else None})
    return stage


def load_residual(stage: Stage, split: str) -> dict[str, torch.Tensor]:
    """All rows of one split, see :func:`run_harvest`."""
    shards = [read_tensors(path) for path in sorted(stage.folder.glob(f"{split}-*.safetensors"))]
    return {name: torch.cat([shard[name] for shard in shards]) for name in shards[0]}


def _width(folder: Path) -> int:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(folder).get_text_config().hidden_size


def _shards(sequences: list[list[int]]) -> list[list[tuple[int, list[int]]]]:
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


def _capture(
    engine: TransformersEngine, rows: list[tuple[int, list[int]]], batch_tokens: int
) -> dict[str, torch.Tensor]:
    kept: dict[str, list[torch.Tensor]] = {"residual": [], "token": [], "sequence": [], "position": []}
    for batch in _batches(rows, batch_tokens):
        for (index, ids), residual in zip(batch, engine.residual([ids for _, ids in batch]), strict=True):
            positions = content_mask(residual).nonzero().squeeze(1).cpu()
            kept["residual"].append(residual[positions].to(torch.bfloat16).cpu())
            kept["token"].append(torch.tensor(ids, dtype=torch.int32)[positions])
            kept["sequence"].append(torch.full((len(positions),), index, dtype=torch.int32))
            kept["position"].append(positions.to(torch.int32))
    return {name: torch.cat(parts) for name, parts in kept.items()}


def _batches(rows: list[tuple[int, list[int]]], batch_tokens: int) -> list[list[tuple[int, list[int]]]]:
    """Neighbours in length, at most ``batch_tokens`` padded tokens together."""
    batches: list[list[tuple[int, list[int]]]] = []
    for item in rows:
        if not batches or (len(batches[-1]) + 1) * len(item[1]) > batch_tokens:
            batches.append([])
        batches[-1].append(item)
    return batches
