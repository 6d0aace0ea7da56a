"""Contexts stage: SAE features of every labelled context at every reading site."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sae_runtime.build.stages import Stage, read_tensors, stage_key, write_tensors
from sae_runtime.build.workers import Workers, complete
from sae_runtime.catalog.packs import ConceptPack, Packs, concepts_of
from sae_runtime.detector.sites import SITES, site_tokens
from sae_runtime.engines.chat import ChatEncoder
from sae_runtime.engines.features import encode_prompt
from sae_runtime.engines.transformers import TransformersEngine
from sae_runtime.sae import SAE


@dataclass(frozen=True)
class ContextFeatures:
    """Pooled features of one concept's contexts.

    Attributes:
        sites: by site, float32 ``[contexts, width]``, a column per latent (see :attr:`~sae_runtime.sae.SAE.width`).
        dense: by site, the pooled residual, float32 ``[contexts, d_model]`` (the baseline of dense probes).
        labels: sense number per context, int64 ``[contexts]``.
        held_out: bool ``[contexts]``.
    """

    sites: dict[str, Tensor]
    dense: dict[str, Tensor]
    labels: Tensor
    held_out: Tensor


def contexts_key(dictionary: str, packs: Packs) -> str:
    """Changes with the ``dictionary`` (a key of it and of its model) and with the labelled texts."""
    texts = [[c.concept, s.contexts, s.held_out] for c in concepts_of(packs) for s in c.senses.values()]
    return stage_key(dictionary, texts, SITES)


@dataclass(frozen=True)
class ConceptTask:
    """A task: the labelled contexts of one concept."""

    path: Path
    concept: ConceptPack
    size: int = 1


@dataclass(frozen=True)
class Read:
    """The job of reading contexts with the model in ``model``."""

    open_engine: Callable[[], TransformersEngine]
    model: Path
    open_sae: Callable[[], SAE]

    @contextmanager
    def open(self) -> Iterator[Callable[[ConceptTask], None]]:
        """See :class:`~sae_runtime.build.workers.Job`."""
        engine, encoder, sae = self.open_engine(), ChatEncoder(self.model), self.open_sae()
        try:
            yield lambda task: write_tensors(task.path, _capture(task.concept, engine, encoder, sae))
        finally:
            engine.close()


def run_contexts(stage: Stage, job: Read, packs: Packs, workers: Workers) -> None:
    """Read every labelled context as a user message; one file per concept, so that an interrupted run resumes."""
    concepts = concepts_of(packs)
    tasks = [ConceptTask(_file(stage, concept.concept), concept) for concept in concepts]
    complete(workers, job, tasks, "contexts")
    stage.finish({"concepts": len(concepts)})


def load_contexts(stage: Stage, concept: str) -> ContextFeatures:
    """Features of one concept from a finished stage."""
    data = read_tensors(_file(stage, concept))
    return ContextFeatures(
        sites={site: data[f"features.{site}"].float() for site in SITES},
        dense={site: data[f"dense.{site}"].float() for site in SITES},
        labels=data["labels"],
        held_out=data["held_out"],
    )


def _file(stage: Stage, concept: str) -> Path:
    return stage.folder / f"{concept}.safetensors"


def _capture(concept: ConceptPack, engine: TransformersEngine, encoder: ChatEncoder, sae: SAE) -> dict[str, Tensor]:
    rows: dict[str, list[Tensor]] = {f"{kind}.{site}": [] for kind in ("features", "dense") for site in SITES}
    labels, held_out = [], []
    items = [
        (label, held, context)
        for label, sense in enumerate(concept.senses.values())
        for held, context in sense.all_labelled()
    ]
    chats = [encoder.encode([{"role": "user", "content": context.text}]) for _, _, context in items]
    order = sorted(range(len(items)), key=lambda i: len(chats[i].token_ids))
    for start in range(0, len(order), 16):
        batch = order[start : start + 16]
        residuals = engine.residual([chats[i].token_ids for i in batch])
        for i, residual in zip(batch, residuals, strict=True):
            label, held, context = items[i]
            features = encode_prompt(sae, residual)
            for site in SITES:
                tokens = site_tokens(site, chats[i].spans, 0, context.start, context.end)
                rows[f"features.{site}"].append(torch.from_numpy(features.pooled(tokens, sae.width)).half())
                picked = [t for t in tokens if features.content[t]]
                dense = residual[picked].mean(0) if picked else residual.new_zeros(residual.shape[1])
                rows[f"dense.{site}"].append(dense.half())
            labels.append(label)
            held_out.append(held)
    return {name: torch.stack(parts) for name, parts in rows.items()} | {
        "labels": torch.tensor(labels),
        "held_out": torch.tensor(held_out),
    }
