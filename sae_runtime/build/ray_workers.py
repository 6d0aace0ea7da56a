"""A build's tasks on the workers of a Ray cluster: a new one on this machine, or one that runs already.

All workers must see the build's folder and the model under the same paths as this process: they read and write files there,
and nothing but tasks goes over the wire. Sensecheck, torch and transformers must be the same versions everywhere.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from sae_runtime.build.ray_clusters import local_cluster, running_cluster
from sae_runtime.build.workers import Job, T, Task
from sae_runtime.errors import InputError, SensecheckError, WorkerError
from sae_runtime.progress import console

_TRIES = 3  # of one task; each try but the last cost a worker
_PER_SLOT = 2  # tasks handed out per slot: the next one is there when one ends
_PATIENCE = 30.0  # seconds without a finished task, after which it is looked whether any worker is left
_VISIBLE = 90.0  # seconds in which a file that a worker wrote is seen here; NFS takes up to 60 to see that it came


class RayWorkers:
    """Processes of a Ray cluster, in use inside a ``with`` block.

    Args:
        count: start a cluster of so many processes on this machine.
        address: instead, use a running one: ``HOST:PORT`` or ``auto`` on one of its machines, ``ray://HOST:PORT`` (Ray
            Client) from any other.

    Raises:
        InputError: Ray is not installed, or ``count`` is below 1.
    """

    def __init__(self, *, count: int | None = None, address: str | None = None) -> None:
        if find_spec("ray") is None:
            raise InputError("Ray is not installed.", "pip install 'sensecheck[ray]', or use `--workers local`.")
        if (count is None) == (address is None) or (count is not None and count < 1):
            raise InputError(
                "Workers need a number of at least 1, or the address of a cluster.", "Say ray:2, for example."
            )
        self._count, self._address = count, address
        self._threads = 1
        self._open = ExitStack()

    def __enter__(self) -> RayWorkers:
        """Start or join the cluster.

        Raises:
            WorkerError: it cannot be started or reached, or none of its machines has enough processors for a task.
        """
        self._threads = torch.get_num_threads()
        with ExitStack() as stack:
            if self._count is not None:
                stack.enter_context(local_cluster(self._count * self._threads))
            else:
                stack.enter_context(running_cluster(str(self._address)))
            if not self._slots():
                raise WorkerError(
                    f"No machine of the cluster has the {self._threads} processors that a task uses.",
                    "Set OMP_NUM_THREADS to fewer; a build on one machine with as many threads has the same results.",
                )
            self._open = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        """Leave the cluster; a local one ends."""
        self._open.close()

    def run(self, job: Job[T], tasks: Sequence[T]) -> Generator[T, None, None]:
        """See :class:`.workers.Workers`. A task whose worker is lost is handed out again, twice at most.

        Raises:
            SensecheckError: whatever a task raised.
            WorkerError: a task lost its worker three times, a worker has other versions or does not see the build's
                folder, no machine is left.
        """
        if not tasks:
            return
        import ray

        for folder in {task.path.parent for task in tasks}:
            folder.mkdir(parents=True, exist_ok=True)
        # In a list, so that Ray does not unpack it for every task.
        shipment = _Shipment(secrets.token_hex(8), [ray.put(job)], self._threads, _versions())
        remote = ray.remote(num_cpus=self._threads, max_retries=0, scheduling_strategy="SPREAD")(_work)
        waiting, flying, lost = deque(tasks), dict[Any, T](), Counter[Path]()
        try:
            while waiting or flying:
                room = _PER_SLOT * max(1, self._slots())
                while waiting and len(flying) < room:
                    task = waiting.popleft()
                    flying[remote.remote(shipment, task)] = task
                finished, _ = ray.wait(list(flying), num_returns=1, timeout=_PATIENCE)
                if not finished and not self._slots():
                    raise WorkerError(
                        "The cluster has no machine left that can run a task.",
                        "Start some, and the build again: it goes on with what is missing.",
                    )
                for reference in finished:
                    task = flying.pop(reference)
                    if _ended(reference, task, lost):
                        yield task
                    else:
                        waiting.appendleft(task)
        finally:
            for reference in flying:
                with suppress(Exception):  # the cluster may be gone
                    ray.cancel(reference, force=True)

    def _slots(self) -> int:
        """Tasks that the cluster can run at once."""
        import ray

        return sum(int(node["Resources"].get("CPU", 0) // self._threads) for node in ray.nodes() if node["Alive"])


def _ended(reference: Any, task: Task, lost: Counter[Path]) -> bool:
    """Whether a task made its file; False when its worker was lost, which ``lost`` counts."""
    import ray

    try:
        capability = ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, SensecheckError):
            raise error.cause from error
        raise WorkerError(f"A worker failed to make {task.path}: {error}", "See the traceback above.") from error
    except ray.exceptions.RayError as error:  # its process or machine died, or was short of memory
        lost[task.path] += 1
        if lost[task.path] == _TRIES:
            raise WorkerError(
                f"{_TRIES} workers died while they made {task.path}: {error}",
                "Look for a lack of memory; fewer workers on a machine need less.",
            ) from error
        console.print(f"A worker was lost; {task.path.name} is done again.", highlight=False)
        return False
    _await(task.path)
    _compare(capability)
    return True


def _await(path: Path) -> None:
    """Wait until a file that a worker wrote is seen here too."""
    until = time.monotonic() + _VISIBLE
    while not path.exists():
        if time.monotonic() > until:
            raise WorkerError(
                f"A worker wrote {path}, but it is not here.",
                "Put SENSECHECK_HOME on a file system that all machines share.",
            )
        time.sleep(0.2)


@cache
def _compare(capability: str) -> None:
    """Say once when a worker has other vector units."""
    own = torch.backends.cpu.get_cpu_capability()
    if capability != own:
        console.print(
            f"A worker computes with {capability}, this machine with {own}: activations may differ in their last digits.",
            highlight=False,
        )


# --- In the worker -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Shipment:
    """A job on its way: its name, a reference to it, threads per task, and the versions that it was made with."""

    name: str
    job: list[Any]
    threads: int
    versions: dict[str, str]


class _Opened:
    """The job that this process has open."""

    name = ""
    stack = ExitStack()
    do: Callable[[Any], None]


def _work(shipment: _Shipment, task: Task) -> str:
    """Do one task; returns the vector units it was done with."""
    if not task.path.exists():  # a worker that was lost may have made it
        if _Opened.name != shipment.name:
            _open(shipment, task.path.parent)
        _Opened.do(task)
    return torch.backends.cpu.get_cpu_capability()


def _open(shipment: _Shipment, folder: Path) -> None:
    # What workers print goes to the build's terminal, and loading weights is no news. Read when transformers is imported.
    os.environ |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error"}
    import ray

    _Opened.name = ""
    _Opened.stack.close()
    _check(shipment.versions, folder)
    torch.set_num_threads(shipment.threads)
    _Opened.do = _Opened.stack.enter_context(ray.get(shipment.job[0]).open())
    _Opened.name = shipment.name


def _check(versions: dict[str, str], folder: Path) -> None:
    """Refuse to work with other versions, or without the build's folder."""
    host, own = socket.gethostname(), _versions()
    if own != versions:
        raise WorkerError(f"The worker on {host} has {own}, the build {versions}.", "Install the same versions.")
    if not folder.is_dir():
        raise WorkerError(
            f"The worker on {host} does not see {folder}.",
            "Put SENSECHECK_HOME on a file system that all machines share.",
        )


@cache
def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("sensecheck", "torch", "transformers")}
