"""Who does the heavy work of a build: this process (the default), or the workers of a Ray cluster.

A step cuts its work into tasks that need nothing of each other. Each makes one file in the step's folder, complete or not at
all, and the step puts the files together in a fixed order. So a task may be done twice (its worker was lost, or only
thought lost), an interrupted step goes on with the files that are missing, and the result does not depend on who did what when.

How the work is cut does not depend on the workers either, and everywhere a task runs with as many threads as this process
has (``OMP_NUM_THREADS``): floating-point sums differ in their last digits with the composition of batches and may with the threads.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import torch

from sae_runtime.errors import InputError
from sae_runtime.progress import progress


class Task(Protocol):
    """A share of a step's work; it can be pickled."""

    @property
    def path(self) -> Path:
        """The file that it makes. The task is done when the file is there."""

    @property
    def size(self) -> int:
        """Units of work, for the progress bar."""


T = TypeVar("T", bound=Task)
Taken = TypeVar("Taken", bound=Task, contravariant=True)


class Job(Protocol[Taken]):
    """What is done with each task of a step; it can be pickled."""

    def open(self) -> AbstractContextManager[Callable[[Taken], None]]:
        """Load what all tasks need, a model for example; gives the function that does one task.

        A process opens a job once and does many of its tasks.
        """


class Workers(Protocol):
    """Does the tasks of a job."""

    def run(self, job: Job[T], tasks: Sequence[T]) -> Generator[T, None, None]:
        """Do all ``tasks``; yields each when its file is there, in any order.

        Raises:
            SensecheckError: whatever a task raised.
            WorkerError: workers were lost again and again.
        """


class LocalWorkers:
    """This process, one task after the other."""

    def run(self, job: Job[T], tasks: Sequence[T]) -> Generator[T, None, None]:
        """See :class:`Workers`."""
        if not tasks:
            return
        torch.set_num_threads(torch.get_num_threads())  # as workers do: once set, MKL does not choose fewer by itself
        with job.open() as do:
            for task in tasks:
                do(task)
                yield task


@dataclass(frozen=True)
class Span:
    """A task that is about the items ``start`` to ``stop`` of a long list (rows, latents); its size is their number."""

    path: Path
    start: int
    stop: int

    @property
    def size(self) -> int:
        """See :class:`Task`."""
        return self.stop - self.start


def spans(folder: Path, name: str, total: int, step: int, suffix: str = ".safetensors") -> list[Span]:
    """The list ``0 .. total`` cut into spans of ``step``, with files ``<name>-<number><suffix>`` in ``folder``."""
    starts = range(0, total, step)
    return [
        Span(folder / f"{name}-{number:04d}{suffix}", start, min(start + step, total))
        for number, start in enumerate(starts)
    ]


def complete(workers: Workers, job: Job[T], tasks: Sequence[T], title: str, unit: str = "") -> float | None:
    """Do those of ``tasks`` whose files are not there, with a progress bar.

    Args:
        workers: who does them.
        job: what is done.
        tasks: all of the step's.
        title: of the progress bar.
        unit: of the tasks' sizes; when it is named, the speed is shown.

    Returns:
        Units per second, None when there was nothing to do.
    """
    missing = [task for task in tasks if not task.path.exists()]
    total, fresh = sum(task.size for task in tasks), 0
    began = time.monotonic()
    with (
        progress(title, total, done=total - sum(task.size for task in missing)) as advance,
        closing(workers.run(job, missing)) as finished,
    ):
        for task in finished:
            fresh += task.size
            advance(task.size, f"{fresh / (time.monotonic() - began):.0f} {unit}/s" if unit else "")
    return fresh / (time.monotonic() - began) if fresh else None


def open_workers(value: str) -> AbstractContextManager[Workers]:
    """Workers by the name that the command line gives them; leave the context to let them go.

    ``local``: this process. ``ray:N``: N processes of this machine, in a Ray cluster of their own. ``ray:HOST:PORT``,
    ``ray:auto`` and ``ray://HOST:PORT``: a cluster that runs already, see :class:`.ray_workers.RayWorkers`.

    Raises:
        InputError: there is nothing of this name, or Ray is not installed.
        WorkerError: the cluster cannot be started or reached.
    """
    kind, _, place = value.partition(":")
    if value == "local":
        return nullcontext(LocalWorkers())
    if kind != "ray" or not place:
        raise InputError(
            f"There are no workers '{value}'.", "Use local, ray:N, ray:auto, ray:HOST:PORT or ray://HOST:PORT."
        )
    from sae_runtime.build.ray_workers import RayWorkers

    if place.isdecimal():
        return RayWorkers(count=int(place))
    return RayWorkers(address=value if place.startswith("//") else place)
