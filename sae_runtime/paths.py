"""Where things live: the user's cache, shipped artefacts, concept packs; and which hosts are this machine."""

from __future__ import annotations

import os
from pathlib import Path

from platformdirs import user_cache_path

PACKAGE = Path(__file__).parent
PACKS = PACKAGE / "packs"
ARTEFACTS = PACKAGE / "artefacts"

LOOPBACK = ("127.0.0.1", "::1", "localhost")

CATALOG_FILE = "catalog.sqlite"
SAE_CONFIG_FILE = "cfg.json"
SAE_WEIGHTS_FILE = "sae_weights.safetensors"
CARD_FILE = "card.json"
REPORT_JSON_FILE = "report.json"
REPORT_PAGE_FILE = "report.html"


def cache_dir() -> Path:
    """The user's cache for models, logs and builds; ``SENSECHECK_HOME`` moves it."""
    home = os.environ.get("SENSECHECK_HOME")
    path = Path(home) if home else user_cache_path("sensecheck")
    path.mkdir(parents=True, exist_ok=True)
    return path


def models_dir() -> Path:
    """Folder of converted built-in models, one sub-folder each."""
    return cache_dir() / "models"


def logs_dir() -> Path:
    """Folder of server logs."""
    path = cache_dir() / "logs"
    path.mkdir(parents=True, exist_ok=True)
    return path


def builds_dir() -> Path:
    """Folder of offline builds, one sub-folder per model, resumable."""
    return cache_dir() / "builds"


def artefacts_for(model_name: str) -> Path:
    """Folder of the artefacts shipped for a built-in model (may not exist)."""
    return ARTEFACTS / model_name
