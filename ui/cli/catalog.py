"""``sensecheck db``, and the option that names a catalog; passwords in URLs are never printed."""

from __future__ import annotations

from pathlib import Path

from sae_runtime.catalog.copying import copy_catalog
from sae_runtime.catalog.location import CatalogLocation, catalog_location
from sae_runtime.catalog.masking import mask_catalog, read_words
from sae_runtime.catalog.store import upgrade_catalog


def named_catalog(text: str | None) -> CatalogLocation | None:
    """What ``--catalog`` names; None when it is not given.

    Raises:
        CatalogError: it names neither a file nor a database.
    """
    return catalog_location(text) if text else None


def upgrade(catalog: str) -> None:
    """Bring a catalog to this program's revision."""
    place = catalog_location(catalog)
    upgrade_catalog(place)
    print(f"{place} is up to date")


def mask(catalog: str, words: Path | None) -> None:
    """Mask private data, and the words in a file, in a catalog's corpus texts and say how many texts were changed."""
    place = catalog_location(catalog)
    print(f"{place}: {mask_catalog(place, read_words(words) if words else ())} texts were masked")


def copy(source: str, target: str, *, replace: bool) -> None:
    """Copy a catalog and say what was copied."""
    place = catalog_location(target)
    counts = copy_catalog(source, place, replace=replace)
    print(f"{place} holds {sum(counts.values())} rows in {len(counts)} tables, the same as the source: "
          f"{counts['concepts']} concepts, {counts['senses']} senses, {counts['features']} features")  # fmt: skip
