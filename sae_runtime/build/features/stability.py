"""Seed stability: does a second training run, with another seed, have a latent that does the same?

Judged by what latents do, not by where they point: the correlation of activations on unseen text (as in the matching of
neurons across networks by Li et al. 2016). A cosine of decoder directions alone can mislead in both ways: directions share
the stream's few large dimensions, and dictionaries that begin at tokens of the text agree in part before any training.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse

from sae_runtime.build.features.firings import Firings
from sae_runtime.progress import progress
from sae_runtime.sae import SAE

_BLOCK = 512  # latents that are compared with all others at once


def counterparts(mine: Firings, other: Firings) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """For each latent the one of the other dictionary whose activations correlate best with its own.

    Args:
        mine: firings of the first dictionary on some text, silent rows counting as zeros.
        other: firings of the other dictionary on the same rows.

    Returns:
        Index in the other dictionary, int64 ``[d_sae]``, and Pearson's correlation, float32 ``[d_sae]``; a latent that
        never fires has index 0 and correlation 0.
    """
    a, a_mean, a_spread = _standard(mine)
    b, b_mean, b_spread = _standard(other)
    b = sparse.csr_matrix(b)
    index, best = np.zeros(a.shape[1], dtype=np.int64), np.zeros(a.shape[1], dtype=np.float32)
    with progress("seed stability", a.shape[1]) as advance:
        for start in range(0, a.shape[1], _BLOCK):
            part = slice(start, start + _BLOCK)
            together = (a[:, part].T.tocsr() @ b).toarray() / mine.total
            correlation = (together - np.outer(a_mean[part], b_mean)) / np.outer(a_spread[part], b_spread)
            index[part] = correlation.argmax(1)
            best[part] = correlation.max(1)
            advance(len(correlation))
    silent = mine.counts == 0
    index[silent], best[silent] = 0, 0
    return index, best


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
