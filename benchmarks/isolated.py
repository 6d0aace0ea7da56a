"""Scripts that run in another interpreter, among them one with ``sae-lens``, whose pins fight vLLM's.

The environment is made once and kept in the user's cache (``SENSECHECK_HOME`` moves it). It has the release of torch that
runs here, so that both sides compute alike, and never torchvision, which breaks ``import transformers`` beside a CPU
build of torch. A script and its caller exchange files in one folder, see :mod:`benchmarks.inside`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock

from sae_runtime.errors import SensecheckError
from sae_runtime.paths import cache_dir
from sae_runtime.progress import progress

SAE_LENS = "6.54.12"
_ROOT = Path(__file__).parent.parent
_LINES = 15  # of a failed command's output that are shown
_REGISTRY = "Check that pip reaches a package index from here (the PIP_* variables count), and run this again."


class IsolatedError(SensecheckError):
    """The environment could not be made, or a script in it failed."""


def saelens_python() -> Path:
    """The interpreter that has ``sae-lens``; the environment is made if it does not exist.

    Raises:
        IsolatedError: an installation failed.
    """
    torch = version("torch").split("+")[0]
    folder = cache_dir() / "isolated" / f"sae-lens-{SAE_LENS}-torch-{torch}"
    python = folder / "bin" / "python"
    folder.parent.mkdir(exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not (folder / ".ready").exists():
            shutil.rmtree(folder, ignore_errors=True)
            _make(folder, python, torch)
            (folder / ".ready").touch()
    return python


def _make(folder: Path, python: Path, torch: str) -> None:
    """Torch first, then ``sae-lens`` with what would replace it ruled out."""
    folder.mkdir()
    constraints = folder / "constraints.txt"
    constraints.write_text(f"torch=={torch}\ntorchvision<0\n")
    install = [python, "-m", "pip", "install", "--quiet"]
    with progress(f"environment for sae-lens {SAE_LENS}", 3) as advance:
        for step, command in {
            "empty environment": [sys.executable, "-m", "venv", folder],
            "torch": [*install, f"torch=={torch}"],
            "sae-lens": [*install, "--constraint", constraints, f"sae-lens=={SAE_LENS}"],
        }.items():
            advance(0, step)
            _call(list(map(str, command)), folder / "install.log", f"{step} could not be installed", _REGISTRY)
            advance(1, step)


def run(python: Path, module: str, folder: Path, request: dict[str, Any], *, threads: int | None = None) -> Any:
    """Run ``python -m MODULE FOLDER`` from the project's root and return what it answers.

    Args:
        python: an interpreter.
        module: a script of :mod:`benchmarks.inside`.
        folder: where both sides leave their files; the script's output goes there too.
        request: what the script is told, JSON.
        threads: threads for OpenMP; by default as many as there are cores.

    Raises:
        IsolatedError: the script failed; the message has the end of its output.
    """
    (folder / "request.json").write_text(json.dumps(request))
    environment = {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled", "TMPDIR": str(folder)}
    if threads:
        environment["OMP_NUM_THREADS"] = str(threads)
    remedy = f"If the environment is damaged, delete {cache_dir() / 'isolated'}: it is made again."
    _call([str(python), "-m", module, str(folder)], folder / "output.log", f"{module} failed", remedy, environment)
    return json.loads((folder / "result.json").read_text())


def _call(command: list[str], log: Path, failure: str, remedy: str, environment: dict[str, str] | None = None) -> None:
    """Run ``command`` at the project's root, its output in ``log``."""
    inherited = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    with log.open("a") as output:
        done = subprocess.run(
            command,
            cwd=_ROOT,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=inherited | (environment or {}),
            check=False,
        )
    if done.returncode:
        end = "\n".join(log.read_text("utf-8", errors="replace").splitlines()[-_LINES:])
        raise IsolatedError(f"{failure} (exit code {done.returncode}):\n{end}\n", remedy)


@contextmanager
def plain_errors() -> Iterator[None]:
    """Typed errors become one message and exit code 2."""
    try:
        yield
    except SensecheckError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
