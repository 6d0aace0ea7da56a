"""Firings made by a build's workers: the rows are cut into spans, each of which leaves a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from sae_runtime.build.features.firings import BATCH, Firings
from sae_runtime.build.harvest import load_rows
from sae_runtime.build.stages import Stage, read_tensors, write_tensors
from sae_runtime.build.train import load_trained
from sae_runtime.build.workers import Span, Workers, complete, spans

# Rows of a task: whole batches, counted from the first row of the split, so that every product has the same shape as when all
# is done at once.
_ROWS = 2 * BATCH


@dataclass(frozen=True)
class Encoded:
    """Firings of a dictionary on the first rows of a split. As a job it makes their files.

    Attributes:
        folder: where the files are.
        name: what they are called after.
        trained: stage of the dictionary.
        harvest, split: where the rows are from.
        rows: their number.
        step: rows of a task.
    """

    folder: Path
    name: str
    trained: Stage
    harvest: Stage
    split: str
    rows: int
    step: int = field(default_factory=lambda: _ROWS)

    def make(self, workers: Workers) -> None:
        """Make the files that are not there."""
        complete(workers, self, self._spans, f"firings, {self.name}", "rows")

    def load(self) -> Firings:
        """The firings, when all files are there."""
        files = [(span, read_tensors(span.path)) for span in self._spans]
        return Firings.join(
            [
                Firings(file["starts"].numpy(), file["rows"].numpy(), file["values"].numpy(), span.size)
                for span, file in files
            ]
        )

    @contextmanager
    def open(self) -> Iterator[Callable[[Span], None]]:
        """See :class:`~sae_runtime.build.workers.Job`."""
        sae = load_trained(self.trained)

        def encode(span: Span) -> None:
            residual = load_rows(self.harvest, self.split, span.start, span.stop)
            found = Firings.collect(sae, residual, lambda rows: None)
            columns = {"starts": found.starts, "rows": found.rows, "values": found.values}
            write_tensors(span.path, {name: torch.from_numpy(column) for name, column in columns.items()})

        yield encode

    @property
    def _spans(self) -> list[Span]:
        return spans(self.folder, f"firings-{self.name}", self.rows, self.step)
