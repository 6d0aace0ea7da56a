"""A tiny build that nobody disturbed, which the disturbed ones are compared with."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from faults.killing import Surroundings, build, ends
from tiny_builds import make_corpus, make_pack, write_config
from tiny_models import make_model

from sae_runtime.paths import CARD_FILE, CATALOG_FILE
from sae_runtime.sae.fingerprint import fingerprint_sae


@dataclass(frozen=True)
class WholeBuild:
    """The model, the build's configuration, the cache it ran in, what it published."""

    model: Path
    config: Path
    home: Path
    artefacts: Path

    @classmethod
    def make(cls, folder: Path) -> WholeBuild:
        """Build in ``folder``."""
        (folder / "corpus").mkdir()
        model = make_model(folder / "llama", "llama")
        config = write_config(folder / "build.yaml", model, make_corpus(folder / "corpus"), make_pack(folder / "few"))
        assert ends(build, str(config), str(folder / "artefacts"), around=Surroundings(home_in(folder))) == 0
        return cls(model, config, folder / "home", folder / "artefacts")


def home_in(folder: Path) -> dict[str, str]:
    """The environment of a build whose cache is in ``folder``."""
    return {"SENSECHECK_HOME": str(folder / "home"), "SENSECHECK_CORPUS": ""}


def in_step(name: str) -> str:
    """Pattern of finished files in the folder of a step."""
    return rf"/{name}-[0-9a-f]{{10}}/[^.]"


def contents(artefacts: Path) -> dict[str, Any]:
    """Everything that was published, without dates."""
    with closing(sqlite3.connect(artefacts / CATALOG_FILE)) as connection:
        lines = [line for line in connection.iterdump() if not line.startswith('INSERT INTO "builds"')]
    card = json.loads((artefacts / CARD_FILE).read_text("utf-8"))
    return {
        "sae": fingerprint_sae(artefacts),
        "catalog": hashlib.sha256("\n".join(lines).encode()).hexdigest(),
        "card": {**card, "created": None},
    }
