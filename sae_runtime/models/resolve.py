"""One ``--model`` value everywhere: a built-in name, a local folder or a hub id."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from sae_runtime.errors import ModelError
from sae_runtime.models.convert import convert_gguf, read_origin
from sae_runtime.models.fetch import fetch_gguf
from sae_runtime.models.manifest import Manifest, builtin_manifests, builtin_names
from sae_runtime.paths import models_dir


@dataclass(frozen=True)
class ResolvedModel:
    """A model that is ready to open.

    Attributes:
        name: the built-in name, or the folder's name, or the hub id; what the server calls the model.
        path: local folder with ``config.json``, safetensors weights and a tokenizer.
    """

    name: str
    path: Path


def resolve_model(value: str, *, fetch: bool = True) -> ResolvedModel:
    """Return the local folder of ``value``, fetching and converting a built-in model when needed.

    Args:
        value: a built-in name, a local folder, or a hub id (``owner/name``).
        fetch: False refuses instead of downloading.

    Raises:
        ModelError: the model is unknown, or absent while ``fetch`` is False; see also :func:`fetch_gguf`.
    """
    manifest = builtin_manifests().get(value)
    if manifest is not None:
        return ResolvedModel(value, _builtin_folder(manifest, fetch=fetch))
    folder = Path(value).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").exists():
            raise ModelError(
                f"The folder {folder} has no config.json.", "Point --model at a transformers model folder."
            )
        origin = read_origin(folder)
        return ResolvedModel(origin["name"] if origin else folder.resolve().name, folder.resolve())
    if value.count("/") == 1 and not value.startswith((".", "/", "~")):
        return ResolvedModel(value, _hub_folder(value, fetch=fetch))
    raise ModelError(
        f"Unknown model '{value}'.",
        f"Use a built-in name ({', '.join(builtin_names())}), a local model folder, or a hub id like owner/name.",
    )


def _builtin_folder(manifest: Manifest, *, fetch: bool) -> Path:
    target = models_dir() / manifest.name
    if (target / "config.json").exists():
        return target
    if not fetch:
        raise ModelError(
            f"The model '{manifest.name}' is not on this machine.", f"Run `sensecheck model fetch {manifest.name}`."
        )
    downloads = models_dir() / f".{manifest.name}.download"
    downloads.mkdir(parents=True, exist_ok=True)
    with FileLock(models_dir() / f".{manifest.name}.lock"):  # two processes may start at once; one does the work
        if not (target / "config.json").exists():
            convert_gguf(manifest, fetch_gguf(manifest, downloads), target)
            shutil.rmtree(downloads, ignore_errors=True)
    return target


def _hub_folder(repo: str, *, fetch: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
    try:
        return Path(snapshot_download(repo, allow_patterns=patterns, local_files_only=not fetch))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(
            f"The hub model '{repo}' cannot be read: {error}.",
            f"Check the name and the network, or use a built-in model ({', '.join(builtin_names())}).",
        ) from error
