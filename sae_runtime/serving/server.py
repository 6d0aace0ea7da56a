"""Starting vLLM's OpenAI-compatible server for a model: on loopback, logged to a file, ended with its parent."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import httpx

from sae_runtime.errors import ServerError
from sae_runtime.models import ResolvedModel, resolve_model
from sae_runtime.paths import artefacts_for, logs_dir

DEFAULT_PORT = 8000
_STOP_SECONDS = 20.0


@dataclass(frozen=True)
class ServerOptions:
    """How a model is served.

    Attributes:
        host, port: where to listen; port 0 picks a free one.
        api_key: key that requests must carry, or None.
        max_model_len: context window in tokens.
        compiled: compile the model (faster generation, about 100 s longer the first time) instead of eager mode.
        artefacts: folder of SAE and catalog for the inspection routes; None takes the shipped ones.
        extra: further vLLM options, passed through.
        start_seconds: how long the server may take to become healthy.
    """

    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    api_key: str | None = None
    max_model_len: int = 4096
    compiled: bool = False
    artefacts: Path | None = None
    extra: tuple[str, ...] = ()
    start_seconds: float = 420.0
    environment: dict[str, str] = field(default_factory=dict)


class ModelServer:
    """A running server; a context manager that stops it.

    Use :meth:`start`. ``url`` is the server's root, ``model`` the name to ask for, ``log`` its log file.
    """

    def __init__(self, process: subprocess.Popen[bytes], url: str, model: str, log: Path) -> None:
        self.process = process
        self.url = url
        self.model = model
        self.log = log

    @classmethod
    def start(
        cls, model: str, options: ServerOptions | None = None, *, tick: Callable[[str], None] = lambda line: None
    ) -> ModelServer:
        """Start a server and wait until it is healthy.

        Args:
            model: built-in name, folder or hub id.
            options: see :class:`ServerOptions`.
            tick: called about twice a second with the newest line of the log.

        Raises:
            ServerError: vLLM is not installed, the port is taken, or the server dies or stays unhealthy; the end of
                its log is part of the message.
        """
        options = options or ServerOptions()
        if find_spec("vllm") is None:
            raise ServerError("vLLM is not installed.", "Install sensecheck[cpu] or sensecheck[gpu].")
        resolved = resolve_model(model)
        if options.artefacts is not None and not options.artefacts.is_dir():
            raise ServerError(f"There is no artefacts folder {options.artefacts}.", "Check --artefacts.")
        port = _free_port(options.host, options.port)
        log = logs_dir() / f"server-{port}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "sae_runtime.serving.child", *_arguments(resolved, options, port)],
                stdin=subprocess.PIPE,  # closes with this process, however it ends; see child.py
                stdout=output,
                stderr=subprocess.STDOUT,
                env=_environment(resolved, options),
                start_new_session=True,  # Ctrl-C reaches us, and we stop the server in order
            )
        server = cls(process, f"http://{options.host}:{port}", resolved.name, log)
        try:
            server._wait_healthy(options.start_seconds, tick)
        except BaseException:
            server.stop()
            raise
        return server

    def stop(self) -> None:
        """Stop the server and its workers."""
        if self.process.stdin:
            self.process.stdin.close()
        self.process.terminate()
        try:
            self.process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, 9)
            self.process.wait()

    def __enter__(self) -> ModelServer:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def _wait_healthy(self, seconds: float, tick: Callable[[str], None]) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise ServerError(
                    f"The server ended with code {self.process.returncode}.\n{_tail(self.log)}", f"Log: {self.log}"
                )
            if is_healthy(self.url):
                return
            tick(_tail(self.log, 1))
            time.sleep(0.5)
        raise ServerError(f"The server was not healthy after {seconds:.0f} s.\n{_tail(self.log)}", f"Log: {self.log}")


def is_healthy(url: str) -> bool:
    """Whether a server answers its health route."""
    try:
        return httpx.get(f"{url}/health", timeout=2).is_success
    except httpx.HTTPError:
        return False


def served_model(url: str, api_key: str | None = None) -> str | None:
    """Name of the model served at ``url``, or None when nothing that we know answers there."""
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    try:
        response = httpx.get(f"{url}/v1/models", headers=headers, timeout=5).raise_for_status()
        return response.json()["data"][0]["id"]
    except (httpx.HTTPError, ValueError, KeyError, IndexError):
        return None


def reads_prompts(url: str, api_key: str | None = None) -> bool:
    """Whether the server at ``url`` has the inspection routes."""
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    try:
        return httpx.get(f"{url}/v1/sae/health", headers=headers, timeout=5).json()["status"] == "ok"
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        return False


def _arguments(model: ResolvedModel, options: ServerOptions, port: int) -> list[str]:
    arguments = [
        "--model", str(model.path), "--served-model-name", model.name,
        "--host", options.host, "--port", str(port),
        "--dtype", "bfloat16", "--max-model-len", str(options.max_model_len),
        "--enable-prefix-caching",
    ]  # fmt: skip
    if not options.compiled:
        arguments.append("--enforce-eager")
    return [*arguments, *options.extra]


def _environment(model: ResolvedModel, options: ServerOptions) -> dict[str, str]:
    settings = {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
    }
    environment = settings | dict(os.environ) | options.environment
    if options.api_key:
        environment["VLLM_API_KEY"] = options.api_key  # not on the command line, where every user could read it
    artefacts = options.artefacts or artefacts_for(model.name)
    if artefacts.is_dir():
        # The variable is an allow-list; what the user asked for stays on it.
        environment["VLLM_PLUGINS"] = ",".join(filter(None, [environment.get("VLLM_PLUGINS"), "sensecheck"]))
        environment["SENSECHECK_SERVE_MODEL"] = str(model.path)
        environment["SENSECHECK_SERVE_ARTEFACTS"] = str(artefacts)
    return environment


def _free_port(host: str, port: int) -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ServerError(
                f"Port {port} on {host} cannot be used: {error.strerror}.",
                "Choose another with --port, or 0 for a free one.",
            ) from error
        return probe.getsockname()[1]


def _tail(log: Path, lines: int = 15) -> str:
    text = log.read_text("utf-8", errors="replace").strip()
    return "\n".join(text.splitlines()[-lines:])
