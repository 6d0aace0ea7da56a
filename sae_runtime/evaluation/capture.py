"""What the model holds inside while it reads each item: SAE features and the residual stream, pooled over each spot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array

from sae_runtime.build.stages import read_tensors, stage_key, write_tensors
from sae_runtime.engines.chat import ChatEncoder, EncodedChat
from sae_runtime.engines.features import encode_prompt
from sae_runtime.engines.transformers import TransformersEngine
from sae_runtime.evaluation.items import Item
from sae_runtime.progress import progress
from sae_runtime.sae import SAE

LAST = "last"  # the prompt's last token, where the answer begins
CONTRAST = "contrast"  # of two spots "first" and "second": how far apart they are, latent by latent
_TOGETHER = 16


@dataclass(frozen=True)
class Captured:
    """Pooled activations of all items, in their order.

    Attributes:
        features: by spot, sparse ``[items, d_sae]``, mean over the spot's tokens of ``sqrt(activation)``.
        dense: by spot, float32 ``[items, d_model]``, mean residual stream.
        decoder: float32 ``[d_sae, d_model]``, the dictionary's directions by latent; zeros for those that it does not hold.
        key: of prompts, spots, dictionary and layer; "" when it was not kept.

    Items without a spot have zeros there.
    """

    features: dict[str, csr_array]
    dense: dict[str, NDArray[np.float32]]
    decoder: NDArray[np.float32] | None = None
    key: str = ""

    @property
    def spots(self) -> list[str]:
        """Where items were read."""
        return list(self.dense)

    def part(self, rows: Sequence[int]) -> Captured:
        """What was read of the items ``rows``, at the spots where they were read."""
        at = list(rows)
        spots = [spot for spot in self.dense if self.dense[spot][at].any()]
        features = {spot: self.features[spot][at] for spot in spots}
        return replace(self, features=features, dense={spot: self.dense[spot][at] for spot in spots})


def captured(
    items: Sequence[Item], engine: TransformersEngine, encoder: ChatEncoder, sae: SAE, sae_key: str, cache: Path
) -> Captured:
    """Read every item's prompt once; kept in ``cache`` under a key of prompts, spots and the dictionary's ``sae_key``.

    Raises:
        EngineError: activations could not be captured.
    """
    key = stage_key([[item.prompt, sorted(item.spots.items())] for item in items], sae_key, engine.layer)
    path = cache / f"captured-{key}.safetensors"
    if not path.exists():
        write_tensors(path, _capture(items, engine, encoder, sae))
    read = _unpacked(read_tensors(path), len(items), sae.width)
    return _contrasted(replace(read, decoder=sae.directions().numpy(), key=key))


def _capture(
    items: Sequence[Item], engine: TransformersEngine, encoder: ChatEncoder, sae: SAE
) -> dict[str, torch.Tensor]:
    same: dict[str, list[int]] = {}  # several items may ask about one prompt, which is then read once
    for i, item in enumerate(items):
        same.setdefault(item.prompt, []).append(i)
    chats = {
        prompt: encoder.encode([{"role": "user", "content": prompt}], limit=engine.context_length) for prompt in same
    }
    spots, width = [*dict.fromkeys(spot for item in items for spot in item.spots), LAST], sae.width
    dense = {spot: torch.zeros(len(items), engine.d_model, dtype=torch.float16) for spot in spots}
    sparse: dict[str, dict[int, tuple[torch.Tensor, torch.Tensor]]] = {spot: {} for spot in spots}
    # Longest first: what a prompt needs fits where the one before it lay. The other way round the heap grew to 18 GB.
    order = sorted(same, key=lambda prompt: len(chats[prompt].token_ids), reverse=True)
    with progress("reading", len(order)) as advance:
        for first in range(0, len(order), _TOGETHER):
            batch = order[first : first + _TOGETHER]
            for prompt, residual in zip(
                batch, engine.residual([chats[prompt].token_ids for prompt in batch]), strict=True
            ):
                features = encode_prompt(sae, residual)
                for i, spot in product(same[prompt], spots):
                    tokens = _tokens(chats[prompt], items[i], spot)
                    kept = [t for t in tokens if features.content[t]]
                    if kept:
                        # Huge dimensions of the stream overflow half precision; a quarter of them does not.
                        dense[spot][i] = (residual[kept].float().mean(0) / 4).half()
                    pooled = torch.from_numpy(features.pooled(tokens, width))
                    columns = pooled.nonzero()[:, 0]
                    sparse[spot][i] = columns.int(), pooled[columns].half()
            advance(len(batch))
    return _packed(dense, sparse)


def _packed(
    dense: dict[str, torch.Tensor], sparse: dict[str, dict[int, tuple[torch.Tensor, torch.Tensor]]]
) -> dict[str, torch.Tensor]:
    packed: dict[str, torch.Tensor] = {}
    for spot in dense:
        rows = [row for _, row in sorted(sparse[spot].items())]
        packed |= {
            f"dense.{spot}": dense[spot],
            f"columns.{spot}": torch.cat([columns for columns, _ in rows]),
            f"values.{spot}": torch.cat([values for _, values in rows]),
            f"counts.{spot}": torch.tensor([len(columns) for columns, _ in rows]),
        }
    return packed


def _tokens(chat: EncodedChat, item: Item, spot: str) -> range:
    if spot == LAST:
        return range(len(chat.token_ids) - 1, len(chat.token_ids))
    start, end = item.spots.get(spot, (0, 0))
    inside = [i for i, span in enumerate(chat.spans) if span.message == 0 and span.start < end and span.end > start]
    return range(inside[0], inside[-1] + 1) if inside else range(0)


def _unpacked(tensors: dict[str, torch.Tensor], count: int, width: int) -> Captured:
    spots = [name.partition(".")[2] for name in tensors if name.startswith("dense.")]
    features = {}
    for spot in spots:
        ends = np.concatenate([[0], tensors[f"counts.{spot}"].numpy().cumsum()])
        values = tensors[f"values.{spot}"].float().numpy().astype(np.float64)
        features[spot] = csr_array((values, tensors[f"columns.{spot}"].numpy(), ends), shape=(count, width))
    return Captured(features, {spot: tensors[f"dense.{spot}"].float().numpy() * 4 for spot in spots})


def _contrasted(read: Captured) -> Captured:
    """With the contrast of ``first`` and ``second`` where items have both: what tells whether two mentions agree."""
    if not {"first", "second"} <= set(read.spots):
        return read
    one, two = read.features["first"], read.features["second"]
    gap = np.abs(read.dense["first"] - read.dense["second"])
    features = {**read.features, CONTRAST: csr_array(abs(one - two))}
    return replace(read, features=features, dense={**read.dense, CONTRAST: gap})
