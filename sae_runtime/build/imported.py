"""A dictionary that others trained, in place of the train stage's own."""

from __future__ import annotations

import re
from pathlib import Path

from sae_runtime.build.stages import Stage
from sae_runtime.errors import InputError
from sae_runtime.paths import SAE_CONFIG_FILE, SAE_WEIGHTS_FILE
from sae_runtime.sae import load_sae, save_sae
from sae_runtime.sae.fingerprint import fingerprint_sae

_LAYER = re.compile(r"(?:blocks|layers|h)\.(\d+)\b")


def find_sae(value: str) -> Path:
    """The folder of the SAE called ``value``: a local folder, or ``owner/repo/folder`` of a model hub.

    Raises:
        InputError: there is neither.
    """
    if Path(value).is_dir():
        return Path(value)
    owner, _, rest = value.partition("/")
    repo, _, folder = rest.partition("/")
    if not repo:
        raise InputError(f"There is no SAE folder {value}.", "Name a folder, or OWNER/REPO/FOLDER of a model hub.")
    from huggingface_hub import snapshot_download

    wanted = [f"{folder}/{name}".lstrip("/") for name in (SAE_CONFIG_FILE, SAE_WEIGHTS_FILE)]
    try:
        return Path(snapshot_download(f"{owner}/{repo}", allow_patterns=wanted)) / folder
    except Exception as error:  # the hub's client has many classes, for no network among them
        raise InputError(f"The SAE {value} cannot be fetched: {error}", "Download it and name its folder.") from error


def imported_fingerprint(value: str) -> str:
    """Changes with the SAE's files."""
    return fingerprint_sae(find_sae(value))


def import_sae(stage: Stage, value: str, *, d_in: int, layer: int) -> None:
    """Check that the SAE fits the model's residual stream after ``layer`` and copy it to the stage's folder.

    Raises:
        ArtefactError: it cannot be read.
        InputError: it belongs to another width or another layer.
    """
    sae = load_sae(find_sae(value))
    if sae.d_in != d_in:
        raise InputError(f"The SAE {value} reads a width of {sae.d_in}, the model's is {d_in}.", "Check the model.")
    hook = str(sae.metadata.get("hook_name", ""))
    found = _LAYER.search(hook)
    if found and int(found[1]) != layer:
        raise InputError(
            f"The SAE {value} belongs to {hook}, the configuration reads layer {layer}.", "Change `layer`."
        )
    sae.metadata.setdefault("hook_name", f"blocks.{layer}.hook_resid_post")
    save_sae(sae, stage.folder)
    stage.finish({"tokens_trained": int(sae.metadata.get("training_tokens", 0)), "loss": [], "imported": value})
