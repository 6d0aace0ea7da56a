"""Processes of their own that do one thing and are killed, or stopped, in the middle of it.

They are forked from a clean server process that has everything imported, so each starts in a fraction of a second. Where a
process ends is told by Python's audit events (:pep:`578`), so nothing of the product is patched: ``os.rename`` comes
before a finished file gets its name, ``open`` before it is made, ``sqlite3.connect`` and ``shutil.rmtree`` as named.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import resource
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["faults.preloaded"])


@dataclass(frozen=True)
class Moment:
    """When a process gets a signal: at the ``count``-th ``event`` whose arguments match the pattern ``about``."""

    event: str
    about: str
    count: int = 1
    signal: int = signal.SIGKILL


@dataclass(frozen=True)
class Surroundings:
    """What a process finds: variables of the environment, the largest file it may write, when it gets a signal."""

    environment: dict[str, str] = field(default_factory=dict)
    file_bytes: int | None = None
    moment: Moment | None = None


def start(work: Callable[..., Any], *args: Any, around: Surroundings) -> BaseProcess:
    """Begin ``work(*args)`` in a process of its own. ``work`` is a function of a module on the import path."""
    process = _CONTEXT.Process(target=_run, args=(work, args, around), daemon=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))  # where the forkserver looks for what it preloads
        patch.setenv("OMP_NUM_THREADS", "1")
        process.start()
    return process


def ends(work: Callable[..., Any], *args: Any, around: Surroundings) -> int:
    """Run ``work(*args)`` to whatever end; returns the exit code: 0, 3 after an error of ours, or minus a signal."""
    process = start(work, *args, around=around)
    process.join()
    code = process.exitcode
    process.close()
    assert code is not None
    return code


def _run(work: Callable[..., Any], args: tuple[Any, ...], around: Surroundings) -> None:
    from sae_runtime.errors import SensecheckError

    os.environ.update(around.environment)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    if around.file_bytes is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (around.file_bytes, around.file_bytes))
    if around.moment:
        _arm(around.moment)
    try:
        work(*args)
    except SensecheckError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(3)


def _arm(moment: Moment) -> None:
    seen = 0
    about = re.compile(moment.about)

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal seen
        if event == moment.event and any(isinstance(arg, str | Path) and about.search(str(arg)) for arg in args):
            seen += 1
            if seen == moment.count:
                os.kill(os.getpid(), moment.signal)

    sys.addaudithook(hook)


def build(config: str, out: str) -> None:
    """A whole build, with checkpoints often enough for a tiny one."""
    from sae_runtime.build import pipeline, train
    from sae_runtime.build.config import load_config

    train._CHECKPOINT_STEPS = 50
    pipeline.run_build(load_config(config), out=Path(out))


def upgrade(location: str, statement: int | None = None) -> None:
    """Upgrade a catalog; with ``statement`` the process is killed before that statement of SQL."""
    from sqlalchemy import Engine, event

    from sae_runtime.catalog.store import upgrade_catalog

    seen = 0

    @event.listens_for(Engine, "before_cursor_execute")
    def count(*args: Any) -> None:
        nonlocal seen
        seen += 1
        if seen == statement:
            os.kill(os.getpid(), signal.SIGKILL)

    upgrade_catalog(location)


def hold(path: str) -> None:
    """Hold a SQLite file's exclusive lock until killed."""
    import sqlite3

    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("BEGIN EXCLUSIVE")
    Path(f"{path}.held").touch()
    signal.pause()


def write_half(path: str) -> None:
    """Change many rows of a catalog, have part of that written to the file, and die before the end of the transaction."""
    import sqlite3

    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA cache_size = 1")
    connection.execute("BEGIN")
    connection.execute("UPDATE feature_examples SET text = text || 'half-written' || hex(zeroblob(8000))")
    os.kill(os.getpid(), signal.SIGKILL)
