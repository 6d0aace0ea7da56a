"""Opening, creating and upgrading catalogs: SQLite files (or any SQLAlchemy URL) under Alembic's revisions."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import DatabaseError
from sqlalchemy.orm import Session

from sae_runtime.errors import CatalogError, RevisionError

BUSY_TIMEOUT_MS = 5_000


@contextmanager
def open_catalog(location: Path | str, *, writable: bool = False) -> Iterator[Session]:
    """A session on an existing catalog whose schema revision is this program's.

    Args:
        location: a SQLite file, or a SQLAlchemy URL such as ``postgresql+psycopg://...``.
        writable: False opens SQLite read-only; serving never writes.

    Raises:
        CatalogError: the file is missing, damaged or locked.
        RevisionError: the schema is older or newer than this program.
    """
    engine = catalog_engine(location, writable=writable)
    try:
        with engine.connect() as connection:
            check_revision(connection, location)
        with Session(engine) as session:
            yield session
    except DatabaseError as error:
        raise CatalogError(
            f"The catalog {location} cannot be read: {error.orig}.",
            "Restore the file, or rebuild it with `sensecheck build`. If it is locked, close the other program.",
        ) from error
    finally:
        engine.dispose()


def create_catalog(path: Path) -> Engine:
    """An engine on a fresh SQLite catalog at the newest revision. The caller disposes of it."""
    upgrade_catalog(path)
    return catalog_engine(path, writable=True)


def upgrade_catalog(location: Path | str) -> None:
    """Create the schema, or bring it to this program's revision, in one transaction.

    Raises:
        CatalogError: the database cannot be written, or holds a revision this program does not know.
    """
    engine = catalog_engine(location, writable=True, must_exist=False)
    try:
        with engine.begin() as connection:
            config = _alembic_config()
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    except DatabaseError as error:
        raise CatalogError(f"The catalog {location} cannot be upgraded: {error.orig}.", "Check the file.") from error
    except Exception as error:
        if "Can't locate revision" not in str(error):
            raise
        raise RevisionError(f"The catalog {location} is newer than this program.", "Update sensecheck.") from error
    finally:
        engine.dispose()
    if isinstance(location, Path) or "://" not in location:
        seal_catalog(Path(location))  # serving opens it read-only, which a write-ahead log would not allow everywhere


def check_revision(connection: Connection, location: Path | str) -> str:
    """The database's revision, which is this program's.

    Raises:
        RevisionError: it is another one; the message says which command helps.
    """
    found = MigrationContext.configure(connection).get_current_revision()
    head = ScriptDirectory.from_config(_alembic_config()).get_current_head()
    if found == head and head is not None:
        return head
    known = {script.revision for script in ScriptDirectory.from_config(_alembic_config()).walk_revisions()}
    remedy = f"Run `sensecheck db upgrade {location}`." if found is None or found in known else "Update sensecheck."
    raise RevisionError(f"The catalog {location} has schema revision {found}, this program needs {head}.", remedy)


def catalog_engine(location: Path | str, *, writable: bool, must_exist: bool = True) -> Engine:
    """A SQLAlchemy engine with SQLite's settings: busy timeout first, then foreign keys."""
    if isinstance(location, str) and "://" in location:
        return create_engine(location)
    path = Path(location)
    if must_exist and not path.is_file():
        raise CatalogError(f"There is no catalog {path}.", "Pass --catalog, or make one with `sensecheck build`.")
    mode = "rwc" if writable else "ro"
    engine = create_engine(f"sqlite:///file:{quote(quote(str(path.resolve())))}?mode={mode}&uri=true")

    @event.listens_for(engine, "connect")
    def _settings(connection: sqlite3.Connection, record: Any) -> None:
        connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
        connection.execute("PRAGMA foreign_keys = ON")
        if writable:
            connection.execute("PRAGMA journal_mode = WAL")

    return engine


def seal_catalog(path: Path) -> None:
    """Turn a finished catalog into one self-contained file: no write-ahead log beside it, no free pages."""
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
        connection.execute("VACUUM")
    connection.close()


def _alembic_config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(resources.files("migrations")))
    return config
