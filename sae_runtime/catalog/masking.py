"""Masking private data in what a catalog shows of its corpus: e-mail addresses, telephone and other long numbers, keys.

Letters and digits give way to dots one by one, so that a text keeps its length and the places in it stay true. What counts
is told by :mod:`sae_runtime.redact`; an excerpt may also begin or end in the midst of an address.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Table, select, update
from sqlalchemy.exc import DBAPIError

from sae_runtime.catalog.location import CatalogLocation, catalog_location
from sae_runtime.catalog.store import changing, check_revision, check_tables_only, database_failure, seal_catalog
from sae_runtime.catalog.tables import FeatureExampleRow, FeatureRow
from sae_runtime.errors import CatalogError
from sae_runtime.redact import find_private

MASK = "•"
_RUN = re.compile(r"[\w.+%'@-]+")
_HOST = re.compile(r"\w@\w")


def mask(text: str) -> str:
    """``text`` with a dot for each letter and digit of what looks private; masking again changes nothing."""
    kept = list(text)
    for start, end in _private(text):
        kept[start:end] = [MASK if char.isalnum() else char for char in text[start:end]]
    return "".join(kept)


def mask_all(value: Any) -> Any:
    """``value``, made of lists, dicts and plain values, with every text in it masked; keys stay."""
    if isinstance(value, str):
        return mask(value)
    if isinstance(value, list):
        return [mask_all(item) for item in value]
    if isinstance(value, dict):
        return {key: mask_all(item) for key, item in value.items()}
    return value


def mask_catalog(location: CatalogLocation | str) -> int:
    """Mask what a catalog shows of its corpus, in one transaction, and seal the file anew: nothing stays in free pages.

    Examples, labels, descriptions, predicates and promoted tokens are masked; the labelled sentences of senses come from
    packs and stay. The card and the report beside the catalog stay, too.

    Returns:
        How many texts were changed.

    Raises:
        CatalogError: there is no catalog, or it cannot be written.
        RevisionError: its schema is another one.
    """
    place = catalog_location(location)
    if isinstance(place, Path) and not place.is_file():
        raise CatalogError(f"There is no catalog {place}.", "Name the file of a catalog.")
    try:
        with changing(place) as connection:
            check_tables_only(connection, place)
            check_revision(connection, place)
            changed = _mask_table(connection, FeatureExampleRow.__table__, ("text",), mask)
            changed += _mask_table(connection, FeatureRow.__table__, ("label", "description"), mask)
            changed += _mask_table(connection, FeatureRow.__table__, ("predicate", "promoted"), mask_all)
    except DBAPIError as error:
        raise database_failure(error, place, "masked") from error
    if isinstance(place, Path):
        seal_catalog(place)
    return changed


def _mask_table(connection: Connection, table: Any, columns: tuple[str, ...], masked: Callable[[Any], Any]) -> int:
    """Mask ``columns`` of all rows; returns how many values were changed."""
    assert isinstance(table, Table)  # noqa: S101 (what SQLAlchemy makes of our classes)
    changed = 0
    for row in connection.execute(select(table.c.id, *(table.c[name] for name in columns))).mappings().all():
        new = {name: masked(row[name]) for name in columns}
        if different := {name: value for name, value in new.items() if value != row[name]}:
            connection.execute(update(table).where(table.c.id == row["id"]).values(**different))
            changed += len(different)
    return changed


def _private(text: str) -> list[tuple[int, int]]:
    found = [(one.start, one.end) for one in find_private(text)]
    for match in _RUN.finditer(text):
        cut_off = "@" in match[0] and (match.start() == 0 or match.end() == len(text))
        if cut_off or _HOST.search(match[0]):
            found.append(match.span())
    return found
