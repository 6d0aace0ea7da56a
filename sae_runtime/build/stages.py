"""Content-addressed stage folders: same inputs, same key, finished work is skipped and interrupted work is resumed."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from sae_runtime.errors import ArtefactError
from sae_runtime.paths import builds_dir


def stage_key(*parts: Any) -> str:
    """Ten hex digits that change with any of the JSON-serialisable ``parts``."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:10]


class Stage:
    """One stage's folder ``builds/<model>/<name>-<key>``, made when something is first written.

    A stage writes its outputs under their final names only when they are complete and calls :meth:`finish` last.
    """

    def __init__(self, model: str, name: str, key: str) -> None:
        self.name = name
        self.key = key
        self.folder = model_folder(model) / f"{name}-{key}"

    @property
    def done(self) -> bool:
        """Whether the stage ended earlier with the same inputs."""
        return (self.folder / "done.json").exists()

    @property
    def begun(self) -> bool:
        """Whether an interrupted run left something to go on with."""
        return self.folder.is_dir() and not self.done

    def forget(self) -> None:
        """Delete the stage's outputs."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Record the stage's figures and mark it as done."""
        write_text(self.folder / "done.json", json.dumps(summary, indent=1, sort_keys=True) + "\n")

    def summary(self) -> dict[str, Any]:
        """The figures recorded by :meth:`finish`."""
        return json.loads((self.folder / "done.json").read_text("utf-8"))


def model_folder(model: str) -> Path:
    """Folder of all stages of ``model``."""
    return builds_dir() / model.replace("/", "--")


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to a temporary file, then rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, "utf-8")
    partial.replace(path)


def write_tensors(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write ``tensors`` as safetensors to a temporary file, then rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial, metadata)
    partial.replace(path)


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read safetensors.

    Raises:
        ArtefactError: the file is missing or damaged.
    """
    try:
        return load_file(path)
    except Exception as error:  # safetensors has its own exception class
        raise ArtefactError(f"{path} cannot be read: {error}.", "Delete it and run the build again.") from error
