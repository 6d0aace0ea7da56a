"""Fingerprint of an SAE folder, which its catalog records."""

from __future__ import annotations

import hashlib
from pathlib import Path

from sae_runtime.errors import ArtefactError
from sae_runtime.paths import SAE_CONFIG_FILE, SAE_WEIGHTS_FILE

_PIECE = 2**24  # bytes; a large dictionary does not fit into memory twice


def fingerprint_sae(folder: Path) -> str:
    """First 16 hex digits of the SHA-256 over the folder's configuration and weights files.

    Raises:
        ArtefactError: one of them is missing.
    """
    digest = hashlib.sha256()
    for name in (SAE_CONFIG_FILE, SAE_WEIGHTS_FILE):
        path = folder / name
        if not path.is_file():
            raise ArtefactError(f"There is no SAE in {folder}: {name} is missing.", "Restore the folder or rebuild it.")
        with path.open("rb") as file:
            while piece := file.read(_PIECE):
                digest.update(piece)
    return digest.hexdigest()[:16]
