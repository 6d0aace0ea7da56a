"""Masking in what a catalog shows of its corpus: e-mail addresses, telephone and other long numbers, keys; words that are named.

Letters and digits give way to dots one by one, so that a text keeps its length and the places in it stay true. What counts
as private is told by :mod:`sae_runtime.redact`; an excerpt may also begin or end in the midst of an address. Which words
should not be seen, coarse ones say, is for each deployer to name: there is no list of ours.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Table, select, update
from sqlalchemy.exc import DBAPIError

from sae_runtime.catalog.location import CatalogLocation, catalog_location
from sae_runtime.catalog.store import changing, check_revision, check_tables_only, database_failure, seal_catalog
from sae_runtime.catalog.tables import FeatureExampleRow, FeatureRow
from sae_runtime.errors import CatalogError, InputError
from sae_runtime.redact import find_private

MASK = "•"
_RUN = re.compile(r"[\w.+%'@-]+")
_MAX_WORDS_FILE = 2**20
_HOST = re.compile(r"\w@\w")


def word_pattern(words: Iterable[str]) -> re.Pattern[str] | None:
    """Finds each of ``words`` where it stands alone, in any case; None when there are none."""
    some = sorted({word for word in map(str.strip, words) if word}, key=lambda word: (-len(word), word))
    return re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, some))})(?!\w)", re.IGNORECASE) if some else None


def read_words(path: Path) -> list[str]:
    """The words in a file, one on each line; lines that begin with ``#`` are left out.

    Raises:
        InputError: it cannot be read, or is no text of a megabyte at most.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_WORDS_FILE + 1)
        if len(data) > _MAX_WORDS_FILE:
            raise InputError(
                f"{path} has more than {_MAX_WORDS_FILE} bytes.", "Name a list of words, one on each line."
            )
        lines = data.decode("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path} cannot be read: {error}.", "Name a text file in UTF-8, one word on each line."
        ) from error
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def mask(text: str, words: re.Pattern[str] | None = None) -> str:
    """``text`` with a dot for each letter and digit of what looks private, and of what ``words`` finds; masking again changes
    nothing."""
    kept = list(text)
    named = [match.span() for match in words.finditer(text)] if words else []
    for start, end in _private(text) + named:
        kept[start:end] = [MASK if char.isalnum() else char for char in text[start:end]]
    return "".join(kept)


def mask_all(value: Any, words: re.Pattern[str] | None = None) -> Any:
    """``value``, made of lists, dicts and plain values, with every text in it masked; keys stay."""
    if isinstance(value, str):
        return mask(value, words)
    if isinstance(value, list):
        return [mask_all(item, words) for item in value]
    if isinstance(value, dict):
        return {key: mask_all(item, words) for key, item in value.items()}
    return value


def mask_catalog(location: CatalogLocation | str, words: Iterable[str] = ()) -> int:
    """Mask what a catalog shows of its corpus, in one transaction, and seal the file anew: nothing stays in free pages.

    Examples, labels, descriptions, predicates and promoted tokens are masked; the labelled sentences of senses come from
    packs and stay. The card and the report beside the catalog stay, too.

    Args:
        location: of the catalog.
        words: to be masked as well, where they stand alone, in any case.

    Returns:
        How many texts were changed.

    Raises:
        CatalogError: there is no catalog, or it cannot be written.
        RevisionError: its schema is another one.
    """
    place, pattern = catalog_location(location), word_pattern(words)
    if isinstance(place, Path) and not place.is_file():
        raise CatalogError(f"There is no catalog {place}.", "Name the file of a catalog.")
    try:
        with changing(place) as connection:
            check_tables_only(connection, place)
            check_revision(connection, place)
            masked, all_masked = partial(mask, words=pattern), partial(mask_all, words=pattern)
            changed = _mask_table(connection, FeatureExampleRow.__table__, ("text",), masked)
            changed += _mask_table(connection, FeatureRow.__table__, ("label", "description"), masked)
            changed += _mask_table(connection, FeatureRow.__table__, ("predicate", "promoted"), all_masked)
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
