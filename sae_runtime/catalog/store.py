"""Opening, creating and upgrading catalogs under Alembic's revisions: SQLite files, or databases on PostgreSQL."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import URL, Connection, Engine, create_engine, event, func, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from sae_runtime.catalog.file import write_seal
from sae_runtime.catalog.location import CatalogLocation, catalog_location
from sae_runtime.errors import CatalogError, RevisionError

BUSY_TIMEOUT_MS = 5_000
"""How long another program's lock is waited for, on both databases."""
READ_TIMEOUT_MS = 60_000
"""How long PostgreSQL may work on one query of a read-only session."""
CONNECT_TIMEOUT_S = 10

_UPGRADE_LOCK = 0x73656E7365  # "sense": names PostgreSQL's advisory lock, one per database
_LONGEST_REASON = 300  # characters of a database's message


@contextmanager
def open_catalog(location: CatalogLocation | str, *, writable: bool = False) -> Iterator[Session]:
    """A session on an existing catalog whose schema revision is this program's.

    Everything that a read-only session reads is of one moment, whatever others write meanwhile.

    Args:
        location: a SQLite file, or a URL such as ``postgresql://user@host/database``.
        writable: False opens the catalog read-only; serving never writes.

    Raises:
        CatalogError: it is missing, damaged or locked, or the server cannot be reached or refuses.
        RevisionError: the schema is older or newer than this program.
    """
    place = catalog_location(location)
    engine = catalog_engine(place, writable=writable)
    try:
        with Session(engine) as session:
            check_tables_only(session.connection(), place)
            check_revision(session.connection(), place)
            yield session
    except DBAPIError as error:
        raise database_failure(error, place, "read") from error
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        if writable:
            raise
        raise senseless(error, place) from error
    finally:
        engine.dispose()


def senseless(error: Exception, location: CatalogLocation) -> CatalogError:
    """Damage that the database does not see: whoever reads its values, or rows that refer to others, fails on them."""
    return CatalogError(
        f"The catalog {location} holds values that make no sense: {type(error).__name__}: {error}.",
        "Restore it, or rebuild it with `sensecheck build`.",
    )


def create_catalog(location: CatalogLocation | str) -> Engine:
    """An engine on a catalog that is made, or brought to the newest revision. The caller disposes of it."""
    upgrade_catalog(location)
    return catalog_engine(location, writable=True)


def upgrade_catalog(location: CatalogLocation | str) -> None:
    """Create the schema, or bring it to this program's revision, in one transaction; one upgrade waits for another.

    Raises:
        CatalogError: the database cannot be reached or written, or another program holds it too long.
        RevisionError: it holds a revision that this program does not know.
    """
    place = catalog_location(location)
    try:
        with changing(place) as connection:
            upgrade_schema(connection, place)
    except DBAPIError as error:
        raise database_failure(error, place, "upgraded") from error
    if isinstance(place, Path):
        seal_catalog(place)  # serving opens it read-only, which a write-ahead log would not allow everywhere


@contextmanager
def changing(location: CatalogLocation) -> Iterator[Connection]:
    """One transaction in which schema and contents may be changed, by one program at a time; makes a missing file.

    All of it takes effect at the end of the block, or nothing when the block raises or the process is killed.
    """
    engine = _postgres(location, writable=True) if isinstance(location, URL) else _sqlite(location, "rwc", alone=True)
    try:
        with engine.begin() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(select(func.pg_advisory_xact_lock(_UPGRADE_LOCK)))
            yield connection
    finally:
        engine.dispose()


def upgrade_schema(connection: Connection, location: CatalogLocation) -> None:
    """Bring the schema to this program's revision within the connection's transaction.

    Raises:
        RevisionError: it is at a revision that this program does not know.
    """
    config = alembic_config()
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        if "Can't locate revision" not in str(error):
            raise
        raise RevisionError(f"The catalog {location} is newer than this program.", "Update sensecheck.") from error


def check_tables_only(connection: Connection, location: CatalogLocation) -> None:
    """Refuse a SQLite file with views or triggers: we make none, and they are programs that run when it is used.

    Raises:
        CatalogError: it has some.
    """
    if connection.dialect.name != "sqlite":
        return
    query = "SELECT count(*) FROM sqlite_master WHERE type NOT IN ('table', 'index')"
    if connection.exec_driver_sql(query).scalar():
        raise CatalogError(f"The catalog {location} holds views or triggers.", "Do not use it: it is none of ours.")


def check_revision(connection: Connection, location: CatalogLocation) -> str:
    """The database's revision, which is this program's.

    Raises:
        RevisionError: it is another one; the message says which command helps.
    """
    found = MigrationContext.configure(connection).get_current_revision()
    head, *older = _revisions()
    if found == head:
        return head
    remedy = f"Run `sensecheck db upgrade {location}`." if found is None or found in older else "Update sensecheck."
    raise RevisionError(f"The catalog {location} has schema revision {found}, this program needs {head}.", remedy)


def catalog_engine(location: CatalogLocation | str, *, writable: bool, must_exist: bool = True) -> Engine:
    """A SQLAlchemy engine with the settings of its database.

    Raises:
        CatalogError: the file is missing, the location cannot be read, or PostgreSQL's driver is not installed.
    """
    place = catalog_location(location)
    if isinstance(place, URL):
        return _postgres(place, writable=writable)
    if must_exist and not place.is_file():
        raise CatalogError(f"There is no catalog {place}.", "Pass --catalog, or make one with `sensecheck build`.")
    return _sqlite(place, "rwc" if writable else "ro")


def seal_catalog(path: Path) -> None:
    """Turn a finished catalog into one self-contained file: no write-ahead log beside it, no free pages, a seal.

    Raises:
        CatalogError: another program has it open, or the disk is full.
    """
    connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_MS / 1_000)
    try:
        connection.execute("PRAGMA journal_mode = DELETE")
        connection.execute("VACUUM")
        write_seal(connection, path)
    except sqlite3.DatabaseError as error:
        raise CatalogError(
            f"The catalog {path} cannot be made one file: {error}.", "Close other programs that use it, and try again."
        ) from error
    finally:
        connection.close()


def storable(text: str) -> bool:
    """Whether both databases can hold ``text``; in a pattern of SQLite's, NUL would end it and match everything."""
    return "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)


def _sqlite(path: Path, mode: str, *, alone: bool = False) -> Engine:
    """Busy timeout first, then foreign keys. ``alone`` takes the write lock at once and keeps the journal's mode."""
    engine = create_engine(f"sqlite:///file:{quote(quote(str(path.resolve())))}?mode={mode}&uri=true")

    @event.listens_for(engine, "connect")
    def _settings(connection: sqlite3.Connection, record: Any) -> None:
        connection.isolation_level = None  # Python's own BEGIN would leave changes of the schema outside
        connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA trusted_schema = OFF")  # what stands in the file's schema calls no function
        if mode != "ro" and not alone:
            connection.execute("PRAGMA journal_mode = WAL")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE" if alone else "BEGIN")
        if mode != "ro":
            connection.exec_driver_sql("PRAGMA user_version = 0")  # what is written now has no seal yet

    return engine


def _postgres(url: URL, *, writable: bool) -> Engine:
    """Settings go in the connection's start-up packet, behind them the ``options`` of the URL, which so prevail.

    A reader sees one moment (repeatable read), cannot write, and its queries end; a writer does not wait for locks
    longer than SQLite's does.
    """
    settings = {"TimeZone": "UTC"}
    settings |= {"lock_timeout": f"{BUSY_TIMEOUT_MS}ms"} if writable else {"statement_timeout": f"{READ_TIMEOUT_MS}ms"}
    own = [f"-c {name}={value}" for name, value in settings.items()]
    given = [str(url.query["options"])] if "options" in url.query else []
    last = [] if writable else ["-c default_transaction_read_only=on"]
    defaults = {"connect_timeout": str(CONNECT_TIMEOUT_S), "application_name": "sensecheck"}
    query = {**defaults, **url.query, "options": " ".join([*own, *given, *last])}
    try:
        return create_engine(
            url.set(query=query),
            pool_pre_ping=True,
            isolation_level="READ COMMITTED" if writable else "REPEATABLE READ",
        )
    except ModuleNotFoundError as error:
        raise CatalogError(
            f"The catalog {url} needs PostgreSQL's driver.", "Install it: pip install 'sensecheck[postgres]'."
        ) from error


def database_failure(error: DBAPIError, location: CatalogLocation, doing: str) -> CatalogError:
    """What a database's error means for the catalog; the message of a driver holds no password."""
    reason = " ".join(str(error.orig).split())[:_LONGEST_REASON].rstrip(".")
    return CatalogError(f"The catalog {location} cannot be {doing}: {reason}.", _remedy(reason, location))


def _remedy(reason: str, location: CatalogLocation) -> str:
    if isinstance(location, Path):
        if "readonly" in reason and location.with_name(f"{location.name}-journal").exists():
            return f"A program was killed while changing it: `sensecheck db upgrade {location}` brings back what was there."
        return "Restore the file, or rebuild it with `sensecheck build`. If it is locked, close the other program."
    for part, remedy in _POSTGRES_REMEDIES.items():
        if part in reason:
            return remedy
    return "Check the URL, and that its user may do this; the server's log may say more."


# By words of libpq and of the server, whose connection errors carry no code; a server in another language gets the
# general remedy.
_POSTGRES_REMEDIES = {
    "password": "Check user and password: in the URL, in PGPASSWORD or in ~/.pgpass.",
    "does not exist": "Check the names in the URL. `createdb` makes a database, `sensecheck db copy` fills it.",
    "already exists": "Use a database of its own, or a schema: postgresql://...?options=-csearch_path%3DNAME.",
    "permission denied": "Grant the user what it needs: SELECT on all tables to read, ownership to upgrade.",
    "lock timeout": "Another program is changing the catalog; try again when it is done.",
    "statement timeout": "The server is busy; try again, or raise statement_timeout in the URL's options.",
    "read-only": "Connect to the primary server, as a user that may write.",
    "timeout expired": "Check that the server runs and that nothing blocks the way to it.",
    "connection": "Check that the server runs, and host and port in the URL.",
    "resolve host": "Check the host in the URL.",
}


@cache
def _revisions() -> tuple[str, ...]:
    """The revisions that this program knows, newest first; Alembic runs every migration's module to tell."""
    return tuple(script.revision for script in ScriptDirectory.from_config(alembic_config()).walk_revisions())


def alembic_config() -> Config:
    """The catalog's migrations, as Alembic wants to be told of them."""
    config = Config()
    config.set_main_option("script_location", str(resources.files("migrations")))
    return config
