"""Where each latent fires: the sparse activations of a set of tokens, grouped by latent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sae_runtime.sae import SAE

BATCH = 4096  # rows that are encoded at once
_BINS = 20


@dataclass(frozen=True)
class Firings:
    """All (latent, row, activation) triples, sorted by latent.

    Attributes:
        starts: int64 ``[d_sae + 1]``, where each latent's triples begin.
        rows: int32 ``[n]``, row numbers, ascending within a latent.
        values: float32 ``[n]``, activations, all positive.
        total: rows in all.
    """

    starts: NDArray[np.int64]
    rows: NDArray[np.int32]
    values: NDArray[np.float32]
    total: int

    @classmethod
    def collect(cls, sae: SAE, residual: Tensor, advance: Callable[[float], None]) -> Firings:
        """Encode ``residual`` ``[rows, d_in]``."""
        latents, rows, values = [], [], []
        for start in range(0, len(residual), BATCH):
            features = sae.encode(residual[start : start + BATCH].float())
            row, latent = features.nonzero(as_tuple=True)
            latents.append(latent.numpy().astype(np.int32))
            rows.append((row + start).numpy().astype(np.int32))
            values.append(features[row, latent].numpy())
            advance(len(features))
        latent_of = np.concatenate(latents)
        order = np.argsort(latent_of, kind="stable")
        starts = np.searchsorted(latent_of[order], np.arange(sae.d_sae + 1))
        return cls(starts, np.concatenate(rows)[order], np.concatenate(values)[order], len(residual))

    @classmethod
    def join(cls, parts: Sequence[Firings]) -> Firings:
        """Firings on the rows of all ``parts``, which follow each other; each part counts its own rows from 0."""
        firsts = np.cumsum([0, *(part.total for part in parts)])
        latents = np.concatenate(
            [np.repeat(np.arange(len(part.counts), dtype=np.int32), part.counts) for part in parts]
        )
        rows = np.concatenate([part.rows + np.int32(first) for part, first in zip(parts, firsts[:-1], strict=True)])
        order = np.argsort(latents, kind="stable")
        starts = np.concatenate([[0], np.cumsum(sum(part.counts for part in parts))])
        return cls(starts, rows[order], np.concatenate([part.values for part in parts])[order], int(firsts[-1]))

    def of(self, latent: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Rows on which ``latent`` fires, and how strongly."""
        part = slice(self.starts[latent], self.starts[latent + 1])
        return self.rows[part], self.values[part]

    @property
    def counts(self) -> NDArray[np.int64]:
        """Rows on which each latent fires, ``[d_sae]``."""
        return np.diff(self.starts)


def histogram(values: NDArray[np.float32], top: float) -> dict[str, Any]:
    """How often a latent fires how strongly.

    Args:
        values: ``[n]``, activations above 0; those above ``top`` count in the last bin.
        top: end of the last bin, above 0.

    Returns:
        ``edges``: 21 floats from 0 to ``top``, equally far apart; ``counts``: 20 ints, tokens between two edges.
    """
    counts, edges = np.histogram(np.minimum(values, top), bins=_BINS, range=(0.0, top))
    return {"edges": [float(f"{edge:.6g}") for edge in edges], "counts": counts.tolist()}
