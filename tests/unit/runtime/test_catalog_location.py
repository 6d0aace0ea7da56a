"""What names a catalog: paths and URLs; a password in one is never shown."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from sqlalchemy import URL

from sae_runtime.catalog.location import catalog_location, full_text
from sae_runtime.errors import CatalogError

SECRET = "hunter2"  # noqa: S105


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ("catalog.sqlite", "catalog.sqlite"),
        ("/a b/ü#1?.sqlite", "/a b/ü#1?.sqlite"),
        ("sqlite:///relative.sqlite", "relative.sqlite"),
        ("sqlite:////absolute/one.sqlite", "/absolute/one.sqlite"),
    ],
)
def test_files_are_named_by_path_or_url(given: str, path: str) -> None:
    assert catalog_location(given) == Path(path)
    assert catalog_location(Path(given)) == Path(given)


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg"])
def test_every_usual_scheme_of_postgresql_gets_the_driver_that_is_installed(scheme: str) -> None:
    url = catalog_location(f"{scheme}://reader@db.example:5433/senses?sslmode=verify-full")
    assert isinstance(url, URL)
    assert url.drivername == "postgresql+psycopg"
    assert (url.username, url.host, url.port, url.database) == ("reader", "db.example", 5433, "senses")
    assert url.query == {"sslmode": "verify-full"}
    assert catalog_location(url) == url


@pytest.mark.parametrize(
    "given",
    [
        f"postgresql://u:{SECRET}@host/db",
        f"postgresql://host/db?user=u&password={SECRET}",
        f"postgresql://host/db?password={SECRET}",
        f"postgresql://u:other@host/db?password={SECRET}",
        URL.create("postgresql", "u", SECRET, "host", database="db"),
    ],
    ids=["authority", "query", "no user", "both", "object"],
)
def test_a_password_is_kept_and_not_shown(given: str | URL) -> None:
    url = catalog_location(given)
    assert isinstance(url, URL)
    assert url.password == SECRET
    for shown in (str(url), repr(url), f"{url}", repr([url]), repr({"catalog": url})):
        assert SECRET not in shown
        assert "***" in shown
    assert SECRET in full_text(url)
    assert catalog_location(full_text(url)) == url
    assert pickle.loads(pickle.dumps(url)) == url  # noqa: S301


def test_the_full_text_of_a_strange_password_names_the_same_place() -> None:
    url = URL.create("postgresql+psycopg", "u@v", "p@s/s:w#r?d%41 ü", "host", 5432, "db")
    assert catalog_location(full_text(url)) == url


@pytest.mark.parametrize(
    "given",
    [
        f"postgresql://u:x@{SECRET}@host/db",
        f"postgresql://u:x@y/{SECRET}@host/db",
        f"postgresql://u:x@{SECRET}:{SECRET}@host/db",
        f"postgresql://u:pw@host:{SECRET}/db",
        f"postgresql://host/db?password={SECRET}&password={SECRET}",
        f"postgresql://host/db?sslpassword={SECRET}",
        f"mysql://u:{SECRET}@host/db",
        f"postgresql+psycopg2://u:{SECRET}@host/db",
        f"://{SECRET}",
        f"https://{SECRET}",
        f"sqlite://u:{SECRET}@host/file",
        "sqlite://",
        "sqlite:///file?mode=rw",
    ],
)
def test_what_cannot_be_opened_is_refused_without_repeating_it(given: str) -> None:
    with pytest.raises(CatalogError) as caught:
        catalog_location(given)
    assert caught.value.remedy
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
