"""Content-addressed stage folders: same inputs, same key, finished work is skipped and interrupted work is resumed."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from filelock import FileLock, Timeout
from safetensors import safe_open
from safetensors.torch import save_file

from sae_runtime.disk import writing
from sae_runtime.errors import ArtefactError, InputError
from sae_runtime.paths import builds_dir


def stage_key(*parts: Any) -> str:
    """Ten hex digits that change with any of the JSON-serialisable ``parts``."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:10]


class Stage:
    """One stage's folder ``builds/<model>/<name>-<key>``, made when something is first written.

    A stage writes its outputs under their final names only when they are complete and calls :meth:`finish` last. It can be
    pickled: workers on other machines see the folder under the same path.
    """

    def __init__(self, model: str, name: str, key: str) -> None:
        self.name = name
        self.key = key
        self.folder = (model_folder(model) / f"{name}-{key}").absolute()

    @property
    def done(self) -> bool:
        """Whether the stage ended earlier with the same inputs."""
        return (self.folder / "done.json").exists()

    @property
    def parts(self) -> Path:
        """Folder of what tasks leave for the stage to put together; :meth:`finish` deletes it."""
        return self.folder / "parts"

    @property
    def begun(self) -> bool:
        """Whether an interrupted run left something to go on with."""
        return self.folder.is_dir() and not self.done

    def forget(self) -> None:
        """Delete the stage's outputs."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Record the stage's figures and mark it as done; what it needs no longer is deleted."""
        shutil.rmtree(self.parts, ignore_errors=True)
        for partial in (*self.folder.glob(".*.partial"), *self.folder.glob(".tmp*")):  # ours, and safetensors' own
            partial.unlink(missing_ok=True)
        write_text(self.folder / "done.json", json.dumps(summary, indent=1, sort_keys=True) + "\n")

    def summary(self) -> dict[str, Any]:
        """The figures recorded by :meth:`finish`."""
        return json.loads((self.folder / "done.json").read_text("utf-8"))


def model_folder(model: str) -> Path:
    """Folder of all stages of ``model``."""
    return builds_dir() / model.replace("/", "--")


@contextmanager
def only_build(model: str) -> Iterator[None]:
    """Hold the lock of ``model``'s builds.

    Raises:
        InputError: another build of it is running.
    """
    builds_dir().mkdir(parents=True, exist_ok=True)
    lock = FileLock(builds_dir() / f"{model.replace('/', '--')}.lock")
    try:
        held = lock.acquire(timeout=0)
    except Timeout as error:
        raise InputError(f"Another build of {model} is running.", "Wait for it, or stop it.") from error
    with held:
        yield


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to a temporary file, then rename."""
    with _whole(path) as partial:
        partial.write_text(text, "utf-8")


def write_tensors(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write ``tensors`` as safetensors to a temporary file, then rename."""
    with _whole(path) as partial:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial, metadata)


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A temporary file that takes the name ``path`` when the block ends well, and is deleted when it does not.

    Each writer has a name of its own: two write the same file when one was thought to be lost and was not.

    Raises:
        ArtefactError: the disk is full, or may not be written to.
    """
    partial = path.with_name(f".{path.name}.{uuid4().hex[:8]}.partial")
    with writing(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield partial
            partial.replace(path)
        except BaseException:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            raise


def read_tensors(path: Path, names: Sequence[str] | None = None) -> dict[str, torch.Tensor]:
    """Read safetensors: all, or those of these names.

    Raises:
        ArtefactError: the file is missing or damaged.
    """
    with open_tensors(path) as file:
        return {name: file.get_tensor(name) for name in (file.keys() if names is None else names)}


@contextmanager
def open_tensors(path: Path) -> Iterator[Any]:
    """A safetensors file, to read parts of it.

    Raises:
        ArtefactError: the file is missing or damaged.
    """
    try:
        with safe_open(path, "pt") as file:
            yield file
    except Exception as error:  # safetensors has its own exception class
        raise ArtefactError(f"{path} cannot be read: {error}.", "Delete it and run the build again.") from error
