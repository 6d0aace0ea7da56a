"""Where a catalog is: a SQLite file, or a database on a PostgreSQL server named by its SQLAlchemy URL."""

from __future__ import annotations

import getpass
from pathlib import Path

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from sae_runtime.errors import CatalogError

CatalogLocation = Path | URL
"""Both can be printed: a URL shows ``***`` for its password."""

_DRIVER = "postgresql+psycopg"
_EXAMPLE = "postgresql://user@host:5432/database"


def catalog_location(location: CatalogLocation | str) -> CatalogLocation:
    """What ``location`` names: a file by its path or a ``sqlite:///`` URL, a database by a ``postgresql://`` URL.

    The result can be printed and logged. A URL that cannot be read is not repeated in the error, since a password may
    stand anywhere in it.

    Raises:
        CatalogError: it is neither, or its password is not where it can be hidden.
    """
    if isinstance(location, Path):
        return location
    if isinstance(location, str) and "://" not in location:
        return Path(location)
    try:
        url = make_url(location)
    except (ArgumentError, ValueError):
        raise CatalogError("The catalog's URL cannot be read.", f"Write it like {_EXAMPLE}.") from None
    if url.get_backend_name() == "sqlite":
        return _file(url)
    if url.drivername not in ("postgresql", "postgres", _DRIVER):
        raise CatalogError(
            f"A catalog cannot be opened by a URL that begins with '{url.drivername}'.",
            f"Give the path of a SQLite file, or a URL like {_EXAMPLE}.",
        )
    return _database(url)


def full_text(location: CatalogLocation) -> str:
    """The location with its password, for handing on to another process; never print it."""
    return location.render_as_string(hide_password=False) if isinstance(location, URL) else str(location)


def _file(url: URL) -> Path:
    if not url.database or url.query or url.host or url.username:
        raise CatalogError("A SQLite catalog is a file without options.", "Give its path.")
    return Path(url.database)


def _database(url: URL) -> URL:
    """The URL with its driver, and its password in the one place that SQLAlchemy hides."""
    if any("@" in (part or "") for part in (url.host, url.database)):
        raise CatalogError(
            "The catalog's URL has an '@' too many.", "Write @ in a password as %40, / as %2F and : as %3A."
        )
    if "sslpassword" in url.query:
        raise CatalogError(
            "The catalog's URL holds the passphrase of a key (sslpassword), which would be shown.",
            "Use a key file without a passphrase that only its owner can read.",
        )
    user, password = url.query.get("user", url.username), url.query.get("password", url.password)
    if isinstance(password, tuple) or isinstance(user, tuple):  # given twice
        raise CatalogError("The catalog's URL holds several users or passwords.", "Leave one.")
    if password and not user:
        user = getpass.getuser()  # as libpq does; a URL shows and keeps no password without a user
    return url.set(drivername=_DRIVER, username=user, password=password).difference_update_query(["user", "password"])
