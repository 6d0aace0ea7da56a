"""What the processes of a server hold: memory, descriptors, threads, sockets; and what lies in shared memory and files."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 (where the system keeps it)
_ROOT = "API server"


@dataclass(frozen=True)
class Held:
    """What the processes of one role hold. ``rss``: resident bytes; pages that several processes share count in each."""

    rss: int
    descriptors: int
    threads: int
    sockets: int


def look(pid: int) -> dict[str, Held]:
    """What the process ``pid`` and its descendants hold now, by role: ``API server``, and vLLM's own titles of the others.

    Raises:
        psutil.NoSuchProcess: it has ended.
    """
    found: defaultdict[str, list[Held]] = defaultdict(list)
    for role, process in _family(pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            found[role].append(_held(process))
    if _ROOT not in found:
        raise psutil.NoSuchProcess(pid)
    fields = Held.__dataclass_fields__
    return {
        role: Held(*(sum(getattr(held, field) for held in some) for field in fields)) for role, some in found.items()
    }


def memory(pid: int) -> dict[str, int]:
    """Resident bytes by role; cheaper than :func:`look`."""
    found: defaultdict[str, int] = defaultdict(int)
    for role, process in _family(pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            found[role] += process.memory_info().rss
    return dict(found)


def contents(folder: Path, *, without: frozenset[Path] = frozenset()) -> tuple[int, int]:
    """How many entries ``folder`` has at any depth, and their bytes; those in ``without`` do not count."""
    sizes = [size for path, size in _entries(folder) if path not in without]
    return len(sizes), sum(sizes)


def _entries(folder: Path) -> Iterator[tuple[Path, int]]:
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # removed meanwhile
            yield path, path.lstat().st_size


def _family(pid: int) -> Iterator[tuple[str, psutil.Process]]:
    """The process and its descendants, with their roles."""
    root = psutil.Process(pid)
    yield _ROOT, root
    for process in root.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            yield _title(process), process


def _title(process: psutil.Process) -> str:
    """vLLM names its processes; Python's resource tracker is known by its command line."""
    name = process.name()
    if name.startswith("VLLM::"):
        return name
    return "resource tracker" if any("resource_tracker" in word for word in process.cmdline()) else name


def _held(process: psutil.Process) -> Held:
    with process.oneshot():
        return Held(
            process.memory_info().rss, process.num_fds(), process.num_threads(), len(process.net_connections("all"))
        )
