"""Do the words of a description belong together? Judged by the corpus alone, without any language model.

A random network also has latents that fire on a list of words, and a list always "explains" itself. What tells a learnt
feature from such a list is that its words have something in common. Here that is measured with word vectors from
co-occurrence counts: positive pointwise mutual information, reduced by a singular value decomposition (Levy and
Goldberg 2014). The mean cosine between a description's words is compared with that of random words just as frequent.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from sklearn.decomposition import TruncatedSVD

from sae_runtime.build.features.tokens import Words

_WINDOW = 4  # words on each side that count as company
_DIMENSIONS = 64
_RANDOM_LISTS = 400
_FIRST_BAND = 5  # the first band holds ranks below 2 ** (this + 1)
_MOST = 12  # words of a list that are looked at, strongest first


class Relatedness:
    """Word vectors of a corpus, and the chance that random words are as close to each other.

    Args:
        words: the vocabulary.
        sequences: token sequences to count in.
        seed: of the random lists and of the decomposition.
    """

    def __init__(self, words: Words, sequences: list[list[int]], seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        texts = [words.of_token[np.array(ids)] for ids in sequences]
        counts = np.bincount(np.concatenate(texts), minlength=len(words))
        self._vectors = _vectors(texts, len(words), seed)
        seen = np.flatnonzero(counts)
        order = seen[np.argsort(-counts[seen], kind="stable")]
        # Words whose ranks share a power of two are "equally frequent"; the most frequent ones are one band.
        rank = np.arange(len(order)) + 1
        band = np.maximum(0, np.log2(rank).astype(int) - _FIRST_BAND)
        self._band_of = np.full(len(words), -1)
        self._band_of[order] = band
        self._members = [order[band == number] for number in range(band.max() + 1)]

    def chance(self, members: NDArray[np.int64]) -> float | None:
        """Share of random lists of equally frequent words whose mean cosine is at least as high; None for one word."""
        listed = np.unique(members[:_MOST][self._band_of[members[:_MOST]] >= 0])
        if len(listed) < 2:
            return None
        own = _closeness(self._vectors[listed][None])[0]
        pools = [self._members[band] for band in self._band_of[listed]]
        drawn = np.stack([self._rng.choice(pool, _RANDOM_LISTS) for pool in pools], axis=1)
        return float((_closeness(self._vectors[drawn]) >= own).mean())


def _vectors(texts: list[NDArray[np.int32]], size: int, seed: int) -> NDArray[np.float64]:
    """Unit vectors ``[size, dimensions]``; zero for words that never occur."""
    pairs = []
    for step in range(1, _WINDOW + 1):
        pairs += [text[:-step].astype(np.int64) * size + text[step:] for text in texts if len(text) > step]
    codes, times = np.unique(np.concatenate(pairs), return_counts=True)
    half = sparse.coo_matrix((times.astype(float), (codes // size, codes % size)), shape=(size, size))
    counts = sparse.coo_matrix(half + half.T)
    totals = np.asarray(counts.sum(1)).ravel()
    information = np.log(counts.data * totals.sum() / (totals[counts.row] * totals[counts.col]))
    kept = information > 0
    table = sparse.csr_matrix((information[kept], (counts.row[kept], counts.col[kept])), shape=(size, size))
    dimensions = min(_DIMENSIONS, size - 1)
    vectors = TruncatedSVD(dimensions, random_state=seed).fit_transform(table)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)


def _closeness(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean cosine between the unit vectors of each list, ``[lists, n, dimensions]`` to ``[lists]``."""
    count = vectors.shape[1]
    total = np.square(vectors.sum(1)).sum(-1)
    return (total - np.square(vectors).sum((1, 2))) / (count * (count - 1))
