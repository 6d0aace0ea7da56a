"""``sensecheck serve`` and ``sensecheck chat``: long-running commands that end in order."""

from __future__ import annotations

import signal
from pathlib import Path
from types import FrameType

from sae_runtime.errors import ServerError
from sae_runtime.progress import console
from sae_runtime.serving import ServerOptions, reads_prompts
from ui.backend import open_backend, start_with_progress


def run_serve(model: str, options: ServerOptions) -> None:
    """Serve until interrupted; an unexpected end of the server is an error."""
    _interrupt_on_terminate()
    with start_with_progress(model, options) as server:
        console.print(f"OpenAI API on {server.url}/v1. Ctrl-C stops it.")
        if reads_prompts(server.url, options.api_key):
            console.print(f"Readings on {server.url}/v1/sae.")
        else:
            console.print("[yellow]No readings: there are no artefacts for this model; see `sensecheck build`.[/]")
        code = server.process.wait()
        raise ServerError(f"The server ended with code {code}.", f"See its log: {server.log}")


def run_chat(model: str, port: int, url: str | None, artefacts: Path | None) -> None:
    """Open the chat page and serve it until interrupted."""
    from ui.chat.app import launch

    _interrupt_on_terminate()
    with open_backend(model, url=url, artefacts=artefacts) as backend:
        launch(backend, port=port)


def _interrupt_on_terminate() -> None:
    """Let SIGTERM end the command like Ctrl-C, so that servers are stopped in order."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
