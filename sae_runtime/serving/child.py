"""The server process: vLLM's OpenAI-compatible API server, which ends when its parent does.

The parent holds the other end of our standard input. When it exits, however abruptly, the pipe closes, and we send
ourselves SIGTERM, on which vLLM stops its workers in order.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading

_GUARD = "sae_runtime.serving.guard.KeyGuard"


def _end_with_parent(pipe: int) -> None:
    while os.read(pipe, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def guard_arguments() -> list[str]:
    """Options of vLLM that have the key asked for on all routes, where there is a key."""
    return ["--middleware", _GUARD] if os.environ.get("VLLM_API_KEY") else []


def main() -> None:
    """Watch the parent and run the server with this process's arguments."""
    pipe = os.dup(0)
    with open(os.devnull, "rb") as nothing:  # noqa: PTH123 (a file descriptor is what is needed)
        os.dup2(nothing.fileno(), 0)
    sys.argv += guard_arguments()
    threading.Thread(target=_end_with_parent, args=(pipe,), daemon=True).start()
    runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__")


if __name__ == "__main__":
    main()
