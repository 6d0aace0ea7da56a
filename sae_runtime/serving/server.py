"""Starting vLLM's OpenAI-compatible server for a model: on loopback, logged to a file, ended with its parent."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO, Literal

import httpx

from sae_runtime.catalog.location import CatalogLocation, full_text
from sae_runtime.detector.artefacts import Artefacts
from sae_runtime.engines.vllm.options import ENVIRONMENT, UNSUPPORTED, in_worker_arguments
from sae_runtime.errors import InputError, ServerError
from sae_runtime.logs import FORMAT_VARIABLE, LogFormat
from sae_runtime.models import ResolvedModel, resolve_model
from sae_runtime.paths import artefacts_for, logs_dir
from sae_runtime.serving.prompt_files import VARIABLE as PROMPT_LOG_VARIABLE
from sae_runtime.serving.prompt_files import PromptLogOptions, check_prompt_log

DEFAULT_PORT = 8000
Engine = Literal["vllm", "transformers", "none"]
_STOP_SECONDS = 20.0
_LEFT_SECONDS = 5.0  # for those that a server left behind
_CPU_BLOCK_TOKENS = 32
_LOG_OPTIONS = ("--logging-config", "--log-config-file")  # of vLLM, for who wants another format


@dataclass(frozen=True)
class ServerOptions:
    """How a model is served.

    Attributes:
        host, port: where to listen; port 0 picks a free one.
        api_key: key that requests must carry, or None.
        max_model_len: context window in tokens.
        compiled: compile the model (faster generation, about 100 s longer the first time) instead of eager mode.
        artefacts: folder of SAE and catalog for the inspection routes; None takes the shipped ones.
        catalog: another file, or a database, instead of the folder's catalog.
        engine: where prompts are read: ``vllm`` inside its worker, ``transformers`` beside it, ``none`` nowhere.
        dtype: the model's type; ``auto`` takes bfloat16, but float32 on a CPU without bfloat16 units.
        log_format: of the server's log.
        prompt_log: where prompts are logged, redacted; None: nowhere.
        residual: let clients ask for the residual stream itself (for building dictionaries and for tests).
        extra: further vLLM options, passed through.
        start_seconds: how long the server may take to become healthy.
    """

    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    api_key: str | None = field(default=None, repr=False)
    max_model_len: int = 4096
    compiled: bool = False
    artefacts: Path | None = None
    catalog: CatalogLocation | None = None
    engine: Engine = "vllm"
    dtype: str = "auto"
    residual: bool = False
    log_format: LogFormat = "text"
    prompt_log: PromptLogOptions | None = None
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
        reading = _Reading.of(resolved, options)
        if options.prompt_log is not None:
            check_prompt_log(options.prompt_log, reads=bool(reading.environment))
        port = _free_port(options.host, options.port)
        log, output = _new_log(f"server-{port}.log")
        with output:
            process = subprocess.Popen(
                [sys.executable, "-m", "sae_runtime.serving.child", *_arguments(resolved, options, port, reading)],
                stdin=subprocess.PIPE,  # closes with this process, however it ends; see child.py
                stdout=output,
                stderr=subprocess.STDOUT,
                env=_environment(options, reading),
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
        """Stop the server and its workers, also those that a server left behind which was killed."""
        if self.process.stdin:
            self.process.stdin.close()
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(_STOP_SECONDS)
        with contextlib.suppress(ProcessLookupError, PermissionError):  # nobody of the server's group is left
            os.killpg(self.process.pid, signal.SIGTERM)
            deadline = time.monotonic() + _LEFT_SECONDS
            while time.monotonic() < deadline:
                time.sleep(0.05)
                os.killpg(self.process.pid, 0)
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def __enter__(self) -> ModelServer:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def _wait_healthy(self, seconds: float, tick: Callable[[str], None]) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise _ended(self.process.returncode, self.log)
            if is_healthy(self.url):
                return
            tick(_tail(self.log, 1))
            time.sleep(0.5)
        raise ServerError(f"The server was not healthy after {seconds:.0f} s.\n{_tail(self.log)}", f"Log: {self.log}")


def _ended(code: int, log: Path) -> ServerError:
    if UNSUPPORTED in log.read_text("utf-8", errors="replace"):
        return ServerError(
            "vLLM cannot hand out this model's hidden states, so it cannot be read in the worker.",
            f"Serve with `--engine transformers`, which reads beside vLLM. Log: {log}",
        )
    return ServerError(f"The server ended with code {code}.\n{_tail(log)}", f"Log: {log}")


def is_healthy(url: str) -> bool:
    """Whether a server answers its health route."""
    try:
        return httpx.get(f"{url}/health", timeout=2).is_success
    except httpx.HTTPError:
        return False


def bearer(api_key: str | None) -> dict[str, str]:
    """HTTP headers that carry the server's key.

    Raises:
        InputError: no header can carry it. The libraries below would say so, too, but quote the key.
    """
    if api_key and not (api_key.isascii() and api_key.isprintable()):
        raise InputError(
            "The API key holds characters that no HTTP header can carry.", "Check it for line ends and other scripts."
        )
    return {"Authorization": f"Bearer {api_key}"} if api_key else {}


def served_model(url: str, api_key: str | None = None) -> str | None:
    """Name of the model served at ``url``, or None when nothing that we know answers there."""
    try:
        response = httpx.get(f"{url}/v1/models", headers=bearer(api_key), timeout=5).raise_for_status()
        return response.json()["data"][0]["id"]
    except (httpx.HTTPError, ValueError, KeyError, IndexError):
        return None


def reads_prompts(url: str, api_key: str | None = None) -> bool:
    """Whether the server at ``url`` has the inspection routes."""
    try:
        return httpx.get(f"{url}/v1/sae/health", headers=bearer(api_key), timeout=5).json()["status"] == "ok"
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        return False


@dataclass(frozen=True)
class _Reading:
    """What the server is told about reading prompts: options of vLLM and settings of the endpoint plugin."""

    arguments: list[str]
    environment: dict[str, str] = field(repr=False)  # may hold the password of a catalog's server

    @classmethod
    def of(cls, model: ResolvedModel, options: ServerOptions) -> _Reading:
        """Check the artefacts, if there are any, before anything is started."""
        if options.artefacts is not None and not options.artefacts.is_dir():
            raise ServerError(f"There is no artefacts folder {options.artefacts}.", "Check --artefacts.")
        folder = options.artefacts or artefacts_for(model.name)
        if options.engine == "none" or not (folder.is_dir() or options.catalog):
            return cls([], {})
        opened = Artefacts.open(str(model.path), folder=folder, catalog=options.catalog, fetch=False)
        opened.check_sae()  # vLLM's worker loads the file without the catalog
        environment = {"SENSECHECK_SERVE_MODEL": str(model.path), "SENSECHECK_SERVE_ARTEFACTS": str(folder)}
        if options.catalog is not None:
            environment["SENSECHECK_SERVE_CATALOG"] = full_text(options.catalog)
        if options.engine == "transformers":
            return cls([], environment)
        channel = uuid.uuid4().hex
        environment["SENSECHECK_SERVE_CHANNEL"] = channel
        environment["SENSECHECK_SERVE_SAE"] = sae = opened.view.sae_fingerprint
        if options.residual:
            environment["SENSECHECK_SERVE_RESIDUAL"] = "1"
        arguments = in_worker_arguments(folder, opened.view.layer, channel, sae=sae, residual=options.residual)
        return cls(arguments, environment)


def _arguments(model: ResolvedModel, options: ServerOptions, port: int, reading: _Reading) -> list[str]:
    arguments = [
        "--model", str(model.path), "--served-model-name", model.name,
        "--host", options.host, "--port", str(port),
        "--dtype", _dtype() if options.dtype == "auto" else options.dtype, "--max-model-len", str(options.max_model_len),
        "--enable-prefix-caching",
    ]  # fmt: skip
    if not options.compiled:
        arguments.append("--enforce-eager")
    if not (_on_gpu() or any(option.startswith("--block-size") for option in options.extra)):
        # The prefix cache holds whole blocks, 128 tokens by default on a CPU: what follows the last whole one is computed
        # again by the second call of a prompt. Smaller blocks cost nothing here (docs/performance.md).
        arguments += ["--block-size", str(_CPU_BLOCK_TOKENS)]
    if options.log_format == "json" and not any(option.startswith(_LOG_OPTIONS) for option in options.extra):
        arguments += ["--logging-config.formatter", "json"]
    return [*arguments, *reading.arguments, *options.extra]


def _on_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _dtype() -> str:
    from sae_runtime.engines.dtype import compute_dtype

    return str(compute_dtype()).removeprefix("torch.")


def _environment(options: ServerOptions, reading: _Reading) -> dict[str, str]:
    environment = ENVIRONMENT | dict(os.environ) | options.environment
    if options.api_key:
        environment["VLLM_API_KEY"] = options.api_key  # not on the command line, where every user could read it
    if reading.environment:
        # The variable is an allow-list; what the user asked for stays on it.
        environment["VLLM_PLUGINS"] = ",".join(filter(None, [environment.get("VLLM_PLUGINS"), "sensecheck"]))
    environment[FORMAT_VARIABLE] = options.log_format
    environment.pop(PROMPT_LOG_VARIABLE, None)  # only the option switches it on
    if options.prompt_log is not None:
        environment[PROMPT_LOG_VARIABLE] = options.prompt_log.to_json()
    return environment | reading.environment


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


def _new_log(name: str) -> tuple[Path, BinaryIO]:
    """A new server log in its place.

    Raises:
        ServerError: it cannot be made.
    """
    try:
        path = logs_dir() / name
        return path, _open_log(path)
    except OSError as error:
        raise ServerError(
            f"The server's log {error.filename or name} cannot be made: {error.strerror}.",
            "Set SENSECHECK_HOME to a folder that can be written to.",
        ) from error


def _open_log(path: Path) -> BinaryIO:
    """A new server log that only its owner can read."""
    opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    os.fchmod(opened, 0o600)
    return os.fdopen(opened, "wb")


def _tail(log: Path, lines: int = 15) -> str:
    text = log.read_text("utf-8", errors="replace").strip()
    return "\n".join(text.splitlines()[-lines:])
