"""A server without vLLM: the inspection routes in a process of their own, read with transformers; ready in a second.

Tests import this module by name: pytest puts the folder of ``tests/conftest.py`` on the import path.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

from faults.killing import Surroundings, start
from faults.making import eventually
from faults.serving import main
from loopback import free_port

from sae_runtime.serving import reads_prompts


class SmallReplica:
    """One that is ended and begun again at the same address.

    Attributes:
        url: its root.
    """

    def __init__(self, model: Path, artefacts: Path, home: Path) -> None:
        """``home`` is its cache, ``SENSECHECK_HOME``."""
        self._port = free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        self._model, self._home = model, home
        self._process: BaseProcess | None = None
        self.begin(artefacts)

    def begin(self, artefacts: Path) -> None:
        """Start it, and wait until it reads with ``artefacts``."""
        serve = {"SENSECHECK_SERVE_MODEL": str(self._model), "SENSECHECK_SERVE_ARTEFACTS": str(artefacts)}
        around = Surroundings({**serve, "SENSECHECK_HOME": str(self._home)})
        self._process = start(main, self._port, around=around)
        eventually(lambda: reads_prompts(self.url))

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self._process and self._process.pid
        os.kill(self._process.pid, number)

    def stop(self) -> None:
        """End it in order, as vLLM's server is ended."""
        self._end(BaseProcess.terminate)

    def kill(self) -> None:
        """End it at once."""
        self._end(BaseProcess.kill)

    def _end(self, how: Callable[[BaseProcess], None]) -> None:
        assert self._process
        how(self._process)
        self._process.join()
