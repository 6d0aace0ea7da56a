"""Seed stability: does a second training run, with another seed, have a latent that does the same?

Judged by what latents do, not by where they point: the correlation of activations on unseen text (as in the matching of
neurons across networks by Li et al. 2016). A cosine of decoder directions alone can mislead in both ways: directions share
the stream's few large dimensions, and dictionaries that begin at tokens of the text agree in part before any training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse

from sae_runtime.build.features.encoded import Encoded
from sae_runtime.build.features.firings import Firings
from sae_runtime.build.stages import read_tensors, write_tensors
from sae_runtime.build.workers import Span, Workers, complete, spans
from sae_runtime.sae import SAE

_BLOCK = 512  # latents that are compared with all others at once

Counterparts = tuple[NDArray[np.int64], NDArray[np.float32]]


class Comparison:
    """Finds for each latent the one of the other dictionary whose activations correlate best with its own.

    Args:
        mine: firings of the first dictionary on some text, silent rows counting as zeros.
        other: firings of the other dictionary on the same rows.
    """

    def __init__(self, mine: Firings, other: Firings) -> None:
        self._counts, self._total = mine.counts, mine.total
        self._mine = _standard(mine)
        matrix, *rest = _standard(other)
        self._other = (sparse.csr_matrix(matrix), *rest)

    def of(self, start: int, stop: int) -> Counterparts:
        """Counterparts of the latents ``start`` to ``stop``.

        Returns:
            Index in the other dictionary, int64, and Pearson's correlation, float32, each ``[stop - start]``; a latent
            that never fires has index 0 and correlation 0.
        """
        part = slice(start, stop)
        (a, a_mean, a_spread), (b, b_mean, b_spread) = self._mine, self._other
        together = (a[:, part].T.tocsr() @ b).toarray() / self._total
        correlation = (together - np.outer(a_mean[part], b_mean)) / np.outer(a_spread[part], b_spread)
        silent = self._counts[part] == 0
        return np.where(silent, 0, correlation.argmax(1)), np.where(silent, 0, correlation.max(1)).astype(np.float32)


def counterparts(mine: Firings, other: Firings) -> Counterparts:
    """Counterparts of all latents of ``mine``, in this process; see :class:`Comparison`."""
    comparison, latents = Comparison(mine, other), len(mine.counts)
    found = [comparison.of(start, min(start + _BLOCK, latents)) for start in range(0, latents, _BLOCK)]
    index, correlation = (np.concatenate(column) for column in zip(*found, strict=True))
    return index, correlation


@dataclass(frozen=True)
class Compare:
    """The job of comparing: ``mine`` and ``other`` have been made, on the same rows."""

    mine: Encoded
    other: Encoded

    @contextmanager
    def open(self) -> Iterator[Callable[[Span], None]]:
        """See :class:`~sae_runtime.build.workers.Job`."""
        comparison = Comparison(self.mine.load(), self.other.load())

        def compare(span: Span) -> None:
            index, correlation = comparison.of(span.start, span.stop)
            tensors = {"index": torch.from_numpy(index), "correlation": torch.from_numpy(correlation)}
            write_tensors(span.path, tensors)

        yield compare


def find_counterparts(workers: Workers, mine: Encoded, other: Encoded, latents: int, folder: Path) -> Counterparts:
    """Counterparts of all ``latents``, by workers that leave files in ``folder``; see :class:`Comparison`."""
    tasks = spans(folder, "counterparts", latents, _BLOCK)
    complete(workers, Compare(mine, other), tasks, "seed stability")
    found = [read_tensors(task.path) for task in tasks]
    index, correlation = (torch.cat([part[name] for part in found]).numpy() for name in ("index", "correlation"))
    return index, correlation


def cosines(sae: SAE, again: SAE, index: NDArray[np.int64]) -> NDArray[np.float32]:
    """Cosine of each decoder direction of ``sae`` with that of its counterpart number ``index`` in ``again``."""
    unit = [torch.nn.functional.normalize(one.weights["W_dec"].float(), dim=1) for one in (sae, again)]
    return (unit[0] * unit[1][torch.from_numpy(index)]).sum(1).numpy()


def _standard(firings: Firings) -> tuple[sparse.csc_matrix, NDArray[np.float32], NDArray[np.float32]]:
    """Activations ``[rows, d_sae]``, and each latent's mean and standard deviation (infinite where it never fires)."""
    latents = len(firings.counts)
    matrix = sparse.csc_matrix((firings.values, firings.rows, firings.starts), shape=(firings.total, latents))
    mean = np.asarray(matrix.mean(0), dtype=np.float32).ravel()
    square = np.asarray(matrix.multiply(matrix).mean(0), dtype=np.float32).ravel()
    spread = np.sqrt(np.maximum(square - mean**2, 0))
    spread[spread == 0] = np.inf
    return matrix, mean, spread
