"""``sensecheck serve`` and ``sensecheck chat``: long-running commands that end in order."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from types import FrameType

from sae_runtime import logs
from sae_runtime.catalog.location import CatalogLocation
from sae_runtime.detector.artefacts import Artefacts
from sae_runtime.errors import InputError, ServerError
from sae_runtime.logs import LogFormat
from sae_runtime.paths import LOOPBACK
from sae_runtime.progress import console
from sae_runtime.serving import ServerOptions, reads_prompts
from ui.backend import open_backend, start_with_progress


def run_serve(model: str, options: ServerOptions) -> None:
    """Serve until interrupted; an unexpected end of the server is an error.

    Raises:
        InputError: the model would be open to the network.
    """
    if options.host not in LOOPBACK and not options.api_key:
        raise InputError(
            f"The model would be open to everyone who reaches {options.host}.",
            "Give --api-key (or VLLM_API_KEY), or stay on loopback.",
        )
    _interrupt_on_terminate()
    with start_with_progress(model, options) as server:
        console.print(f"OpenAI API on {server.url}/v1. Ctrl-C stops it.")
        if reads_prompts(server.url, options.api_key):
            console.print(f"Readings on {server.url}/v1/sae.")
        else:
            console.print("[yellow]No readings: there are no artefacts for this model; see `sensecheck build`.[/]")
        code = server.process.wait()
        raise ServerError(f"The server ended with code {code}.", f"See its log: {server.log}")


def run_chat(
    model: str,
    url: str | None,
    artefacts: Path | None,
    catalog: CatalogLocation | None = None,
    *,
    port: int,
    host: str,
    auth: Path | None,
    root_path: str | None,
    log_format: LogFormat = "text",
) -> None:
    """Open the chat page and serve it until interrupted.

    Raises:
        InputError: the page would be open to the network, or the file of accounts is malformed.
        ServerError: no model server can be reached or started, or the port is taken.
    """
    from ui.page.app import Door, launch

    logs.configure(log_format, os.environ.get(logs.LEVEL_VARIABLE) or "INFO")
    door = Door(port, host, read_accounts(auth) if auth else None, root_path)
    door.check()  # before a server is started for nothing
    opened = Artefacts.open(model, folder=artefacts, catalog=catalog)
    _interrupt_on_terminate()
    with open_backend(model, url=url, artefacts=artefacts, catalog=catalog, log_format=log_format) as backend:
        launch(backend, opened, door)


def read_accounts(path: Path) -> list[tuple[str, str]]:
    """Lines of ``user:password``; empty lines and those that begin with ``#`` do not count.

    Raises:
        InputError: it cannot be read, or a line is none; the line's number is named, never its text.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"The accounts in {path} cannot be read: {error}.", "Give a text file.") from error
    accounts = []
    for number, line in enumerate(lines, 1):
        if line.strip() and not line.startswith("#"):
            user, colon, password = line.strip().partition(":")
            if not (user and colon and password):
                raise InputError(f"Line {number} of {path} is no account.", "Write user:password.")
            accounts.append((user, password))
    if not accounts:
        raise InputError(f"There are no accounts in {path}.", "Write one line of user:password per person.")
    return accounts


def _interrupt_on_terminate() -> None:
    """Let SIGTERM end the command like Ctrl-C, so that servers are stopped in order."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
