"""Copying a whole catalog from one database to another: how one that was built as a file gets onto a server, and back."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sqlalchemy import URL, Connection, Table, func, select, text
from sqlalchemy.exc import DBAPIError

from sae_runtime.catalog.location import CatalogLocation, catalog_location
from sae_runtime.catalog.store import changing, database_failure, open_catalog, seal_catalog, storable, upgrade_schema
from sae_runtime.catalog.tables import Base, ModelRow, SaeRow
from sae_runtime.errors import CatalogError

_BATCH = 1_000  # rows in memory at once
_TABLES: Sequence[Table] = Base.metadata.sorted_tables  # a table comes after those that it refers to
_Row = dict[str, Any]
_Sum = tuple[int, int]  # rows, and the sum of their hashes: does not depend on their order


def copy_catalog(
    source: CatalogLocation | str, target: CatalogLocation | str, *, replace: bool = False
) -> dict[str, int]:
    """Copy everything in ``source`` to ``target``, in one transaction that ends only if what it reads back is the same.

    ``target`` gets this program's schema where it has none or an older one. Whoever reads it meanwhile sees what was
    there before, and a copy that fails or is killed leaves that.

    Args:
        source: a catalog of this program's revision.
        target: a new or empty file or database.
        replace: also take one that holds a catalog, which is lost.

    Returns:
        The number of rows by table.

    Raises:
        CatalogError: either cannot be opened or read, ``source`` is empty, ``target`` holds a catalog already or cannot
            be written, or does not return what was written.
        RevisionError: ``source`` has another revision, or ``target`` a newer one.
    """
    origin, goal = catalog_location(source), catalog_location(target)
    if _same(origin, goal):
        raise CatalogError(f"{origin} cannot be copied to itself.", "Name another target.")
    with open_catalog(origin) as session:
        if session.scalars(select(SaeRow.id)).first() is None:
            raise CatalogError(f"The catalog {origin} is empty.", "Fill it with `sensecheck build`.")
        with _whole_file(goal) as place:
            try:
                with changing(place) as connection:
                    upgrade_schema(connection, goal)
                    _make_room(connection, goal, replace=replace)
                    counts = _fill(session.connection(), connection, origin, goal)
            except DBAPIError as error:
                raise database_failure(error, goal, "written") from error
            if isinstance(place, Path):
                seal_catalog(place)
    return counts


@contextmanager
def _whole_file(goal: CatalogLocation) -> Iterator[CatalogLocation]:
    """Where to write: a file that is not there yet is made beside its place and moved when it is whole."""
    if isinstance(goal, URL) or goal.exists():
        yield goal
        return
    try:
        staging = TemporaryDirectory(dir=goal.parent, prefix=f".{goal.name}.")
    except OSError as error:
        raise CatalogError(f"The catalog {goal} cannot be written: {error.strerror}.", "Check its folder.") from error
    with staging as folder:
        yield Path(folder) / goal.name
        (Path(folder) / goal.name).replace(goal)


def _make_room(connection: Connection, goal: CatalogLocation, *, replace: bool) -> None:
    held = [table for table in _TABLES if connection.execute(select(table).limit(1)).first() is not None]
    if held and not replace:
        model = connection.scalars(select(ModelRow.name)).first()
        raise CatalogError(
            f"{goal} holds a catalog already" + (f" of {model}." if model else "."),
            "Name a new database or file, or pass --replace if that catalog may go.",
        )
    for table in reversed(held):
        connection.execute(table.delete())


def _fill(source: Connection, target: Connection, origin: CatalogLocation, goal: CatalogLocation) -> dict[str, int]:
    """Copy all rows and read them back.

    Raises:
        CatalogError: a row cannot be written, or the target does not hold the same rows.
    """
    counts = {}
    for table in _TABLES:
        expected = (0, 0)
        for rows in _batches(source, table, origin):
            if target.dialect.name == "postgresql":
                _check_text(rows, table, origin)
            target.execute(table.insert(), rows)
            expected = _add(expected, rows)
        found = (0, 0)
        for rows in _batches(target, table, goal):
            found = _add(found, rows)
        if found != expected:
            raise CatalogError(
                f"{goal} does not return what was written to table '{table.name}'. Nothing was changed.",
                "Check for triggers, rules and column types of its own.",
            )
        counts[table.name] = found[0]
    if target.dialect.name == "postgresql":
        _after_filling(target)
    return counts


def _batches(connection: Connection, table: Table, location: CatalogLocation) -> Iterator[list[_Row]]:
    try:
        result = connection.execute(select(table).execution_options(yield_per=_BATCH))
        for rows in result.mappings().partitions():
            yield [dict(row) for row in rows]
    except DBAPIError as error:
        raise database_failure(error, location, "read") from error


def _check_text(rows: list[_Row], table: Table, origin: CatalogLocation) -> None:
    for row in rows:
        for name, value in row.items():
            if isinstance(value, str) and not storable(value):
                key = ", ".join(str(row[column.name]) for column in table.primary_key)
                raise CatalogError(
                    f"Row {key!r} of '{table.name}' in {origin} holds a NUL character in '{name}'.",
                    "PostgreSQL cannot hold one; remove it from the source that the catalog was built on.",
                )


def _add(total: _Sum, rows: list[_Row]) -> _Sum:
    """The sum with ``rows`` added; floats count with all their digits."""
    count, digest = total
    for row in rows:
        digest += int.from_bytes(hashlib.sha256(repr(sorted(row.items())).encode()).digest())
    return count + len(rows), digest % 2**256


def _after_filling(target: Connection) -> None:
    """Rows came with their ids: later ones must not get them again. And the planner should know the sizes."""
    for table in _TABLES:
        if "id" in table.columns:
            after = select(func.coalesce(func.max(table.c.id), 0) + 1).scalar_subquery()
            target.execute(select(func.setval(func.pg_get_serial_sequence(table.name, "id"), after, False)))
        target.execute(text(f"ANALYZE {table.name}"))


def _same(one: CatalogLocation, other: CatalogLocation) -> bool:
    if isinstance(one, Path) and isinstance(other, Path):
        return one.resolve() == other.resolve()
    return one == other
