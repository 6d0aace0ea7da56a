"""Batches from memory, and the time that a trainer takes between two of them."""

from __future__ import annotations

from collections.abc import Iterator
from time import perf_counter

import torch
from torch import Tensor


class TimedFeed(Iterator[Tensor]):
    """Endless float32 batches ``[batch, d_in]`` of ``x``, in a new random order each epoch.

    Args:
        x: activations ``[n, d_in]``, any float dtype; n is a multiple of ``batch``.
        batch: tokens per batch.
        seed: of the order.

    Attributes:
        seconds: from each batch handed out to the next one asked for; making the batch is not counted.
    """

    def __init__(self, x: Tensor, batch: int, seed: int) -> None:
        self.seconds: list[float] = []
        self._batches = self._endless(x, batch, torch.Generator().manual_seed(seed))
        self._began: float | None = None

    def __next__(self) -> Tensor:
        if self._began is not None:
            self.seconds.append(perf_counter() - self._began)
        batch = next(self._batches)
        self._began = perf_counter()
        return batch

    @staticmethod
    def _endless(x: Tensor, batch: int, generator: torch.Generator) -> Iterator[Tensor]:
        while True:
            for rows in torch.randperm(len(x), generator=generator).split(batch):
                yield x[rows].float()
