"""Ray clusters that a build's workers live in: one of their own on this machine, or one that runs already."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from sae_runtime.errors import WorkerError

_PROBE = 10.0  # seconds in which a running cluster's port answers; Ray itself tries for many minutes
_STORE_BYTES = 100 * 2**20  # of a local cluster's object store: only tasks and jobs pass through it


@contextmanager
def local_cluster(processors: int) -> Iterator[None]:
    """A cluster on this machine, for this process, while the block runs.

    It listens on the loopback address alone, sends no statistics, and asks for a token that only this process and its
    children have.

    Raises:
        WorkerError: it cannot be started.
    """
    values = {
        "RAY_USAGE_STATS_ENABLED": "0",
        # Ray's switch for clusters of one machine: all its processes listen on the loopback address alone.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        **_access(),
    }
    # Sockets are in this folder too, and their paths must be short.
    short = None if len(tempfile.gettempdir()) < 30 else "/tmp"  # noqa: S108
    with environment(values), tempfile.TemporaryDirectory("", "sc-ray-", short, ignore_cleanup_errors=True) as folder:
        import ray
        from ray._private import ray_constants

        before = ray_constants.ENABLE_RAY_CLUSTER
        ray_constants.ENABLE_RAY_CLUSTER = False  # as the variable above; Ray may have been imported before
        options = {"num_cpus": processors, "num_gpus": 0, "object_store_memory": _STORE_BYTES, "_temp_dir": folder}
        try:
            with _joined(include_dashboard=False, **options):
                (node,) = ray.nodes()
                if node["NodeManagerAddress"] != "127.0.0.1":
                    raise WorkerError(f"Ray listens on {node['NodeManagerAddress']}.", "Use `--workers local`.")
                yield
        finally:
            ray_constants.ENABLE_RAY_CLUSTER = before


@contextmanager
def running_cluster(address: str) -> Iterator[None]:
    """Use a cluster that runs already, while the block runs.

    Raises:
        WorkerError: none answers at ``address``, or it has other versions.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if address != "auto":
        try:
            socket.create_connection((host, int(port)), timeout=_PROBE).close()
        except (OSError, ValueError) as error:
            raise WorkerError(
                f"No Ray cluster answers at {address}: {error}.", "Give HOST:PORT of one that runs."
            ) from error
    with _joined(address=address):
        yield


@contextmanager
def _joined(**options: Any) -> Iterator[None]:
    import ray

    terminated = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(logging_level=logging.WARNING, **options)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise WorkerError(f"Ray cannot be used: {error}.", "Compare the versions of Python and Ray.") from error
    try:
        yield
    finally:
        ray.shutdown()
        if terminated is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, terminated)  # Ray puts its own handler there and leaves it


@cache
def _access() -> dict[str, str]:
    """A token without which nobody can use a local cluster; the same for all of this process, since Ray keeps it.

    Ray asks for one by itself, unless ``RAY_AUTH_MODE`` says otherwise, but would take it from a file in the user's home,
    where it stays. It reads the mode when it is imported; if that was before, it warns that it has changed its mind.
    """
    token = {"RAY_AUTH_TOKEN": os.environ.get("RAY_AUTH_TOKEN", secrets.token_hex(32))}
    return token if "ray" in sys.modules else {"RAY_AUTH_MODE": os.environ.get("RAY_AUTH_MODE", "token"), **token}


@contextmanager
def environment(values: dict[str, str]) -> Iterator[None]:
    """Environment variables while the block runs; what Ray sets itself meanwhile is taken back too."""
    before = {name: os.environ.get(name) for name in (*values, "RAY_AUTH_MODE")}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
