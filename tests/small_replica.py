"""A replica without vLLM: the inspection routes in a process of their own, read with transformers; starts in seconds.

Tests import this module by name: pytest puts the folder of ``tests/conftest.py`` on the import path. As a script it is the server.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace

CONTEXT = 256
_PATIENCE = 120.0  # seconds


class SmallReplica:
    """A running one: ``url`` is its root."""

    def __init__(self, model: Path, artefacts: Path, port: int) -> None:
        environment = os.environ | {
            "SENSECHECK_SERVE_MODEL": str(model),
            "SENSECHECK_SERVE_ARTEFACTS": str(artefacts),
            "OMP_NUM_THREADS": "1",
        }
        self.url = f"http://127.0.0.1:{port}"
        self.process = subprocess.Popen([sys.executable, __file__, str(port)], env=environment)

    def wait_healthy(self) -> None:
        """Wait until it reads."""
        from sae_runtime.serving import reads_prompts

        end = time.monotonic() + _PATIENCE
        while not reads_prompts(self.url):
            assert self.process.poll() is None and time.monotonic() < end, "the replica does not answer"
            time.sleep(0.1)

    def stop(self) -> None:
        """End it in order, as vLLM's server is ended."""
        self.process.terminate()
        self.process.wait(_PATIENCE)


def main() -> None:
    """Serve the routes on the port that is the argument."""
    import uvicorn
    from fastapi import FastAPI

    from sae_runtime.serving.plugin import SensecheckEndpoint

    endpoint = SensecheckEndpoint()

    @asynccontextmanager
    async def opened(app: FastAPI) -> AsyncIterator[None]:
        engine = SimpleNamespace(model_config=SimpleNamespace(max_model_len=CONTEXT))
        await endpoint.init_state(engine, app.state, Namespace())
        yield

    app = FastAPI(lifespan=opened)
    endpoint.attach_reading_routes(app)
    uvicorn.run(app, port=int(sys.argv[1]), log_level="warning")


if __name__ == "__main__":
    main()
