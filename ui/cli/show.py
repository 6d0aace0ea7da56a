"""``sensecheck card`` and ``sensecheck db check``: what the artefacts are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from sae_runtime.catalog import CatalogView
from sae_runtime.catalog.location import catalog_location
from sae_runtime.errors import ArtefactError
from sae_runtime.models import resolve_model
from sae_runtime.models.manifest import builtin_names
from sae_runtime.paths import CARD_FILE, CATALOG_FILE, artefacts_for


def load_card(model: str, artefacts: Path | None) -> dict[str, Any]:
    """The card of the model's artefacts.

    Raises:
        ArtefactError: there is none, or it is damaged.
    """
    path = _folder(model, artefacts) / CARD_FILE
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ArtefactError(
            f"The card {path} cannot be read: {error}.", "Make the artefacts with `sensecheck build`."
        ) from error


def show_card(card: dict[str, Any], *, as_json: bool) -> None:
    """Print a card as a table or as JSON."""
    if as_json:
        print(json.dumps(card, indent=1))
        return
    table = Table(title=f"SAE and catalog of {card['model']}", show_header=False)
    for name, value in card.items():
        if name == "data":
            value = ", ".join(f"{source['name']} ({source['licence']})" for source in value["sources"])
        elif isinstance(value, dict):
            value = ", ".join(f"{key} {inner}" for key, inner in value.items())
        table.add_row(name.replace("_", " "), str(value))
    Console().print(table)


def check_catalog(catalog: str | None, model: str) -> None:
    """Open a catalog completely and print what it holds."""
    location = catalog_location(catalog) if catalog else _folder(model, None) / CATALOG_FILE
    view = CatalogView.load(location)
    senses = sum(len(concept.senses) for concept in view.concepts)
    print(f"{location}: model {view.model_name}, layer {view.layer}, {len(view.features)} features, "
          f"{len(view.concepts)} concepts, {senses} senses")  # fmt: skip


def _folder(model: str, artefacts: Path | None) -> Path:
    if artefacts is not None:
        return artefacts
    return artefacts_for(model if model in builtin_names() else resolve_model(model, fetch=False).name)
