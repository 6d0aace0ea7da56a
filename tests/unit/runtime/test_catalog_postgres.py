"""What only a server has: accounts, timeouts, connections that break; and errors that name a remedy and no password."""

from __future__ import annotations

import logging
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from loopback import free_port
from postgres_server import PASSWORD, PostgresServer
from sqlalchemy import URL, select, text

from sae_runtime.catalog import store
from sae_runtime.catalog.copying import copy_catalog
from sae_runtime.catalog.search import search_features
from sae_runtime.catalog.store import catalog_engine, create_catalog, open_catalog, upgrade_catalog
from sae_runtime.catalog.tables import ModelRow
from sae_runtime.catalog.view import CatalogView
from sae_runtime.errors import CatalogError
from sae_runtime.serving.server import ServerOptions

pytestmark = pytest.mark.postgres
WRONG = "not-the-password"


@pytest.fixture
def database(postgres: PostgresServer) -> Iterator[str]:
    """The name of a database with an empty catalog."""
    url = postgres.new_database()
    create_catalog(url).dispose()
    assert url.database
    yield url.database
    postgres.drop(url.database)


def setting(url: URL, name: str, *, writable: bool = False) -> str:
    with open_catalog(url, writable=writable) as session:
        return str(session.scalar(text(f"SHOW {name}")))


def test_a_password_is_taken_from_the_url_or_the_environment(
    postgres: PostgresServer, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_catalog(postgres.tcp_url(database)) as session:
        assert session.scalars(select(ModelRow)).all() == []
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    with open_catalog(f"postgresql://sensecheck@127.0.0.1:{postgres.port}/{database}") as session:
        assert session.scalars(select(ModelRow)).all() == []


Change = Callable[[PostgresServer, URL], URL]
FAULTS: dict[str, tuple[Change, str, str]] = {
    "wrong password": (lambda server, url: url.set(password=WRONG), "password authentication failed", "PGPASSWORD"),
    "no password": (
        lambda server, url: URL.create("postgresql", url.username, None, url.host, url.port, url.database),
        "no password supplied",
        "PGPASSWORD",
    ),
    "no such user": (lambda server, url: url.set(username="nobody_here"), "authentication failed", "user"),
    "no such database": (lambda server, url: url.set(database="none_here"), "does not exist", "createdb"),
    "server down": (lambda server, url: url.set(port=free_port()), "refused", "server runs"),
    "no socket": (lambda server, url: url.set(host=None).update_query_dict({"host": "/nowhere"}), "No such file", "server"),
    "no such host": (lambda server, url: url.set(host="db.invalid"), "db.invalid", "host"),
    "option unknown to libpq": (lambda server, url: url.update_query_dict({"colour": "red"}), "colour", "URL"),
    "setting unknown to the server": (
        lambda server, url: url.update_query_dict({"options": "-c colour=red"}), "colour", "URL",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_server_that_cannot_be_used_is_a_catalog_error_with_a_remedy_and_no_password(
    postgres: PostgresServer,
    database: str,
    fault: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.delenv("PGPASSWORD", raising=False)
    caplog.set_level(logging.DEBUG)
    change, said, remedy = FAULTS[fault]
    url = change(postgres, postgres.tcp_url(database))
    for use in (CatalogView.load, upgrade_catalog, lambda place: search_features(place, "river")):
        with pytest.raises(CatalogError, match=said) as caught:
            use(url)
        assert remedy in caught.value.remedy
        shown = [str(caught.value), repr(caught.value), *(str(caught.value.__cause__), *map(str, caplog.messages))]
        assert not any(secret in line for line in shown for secret in (PASSWORD, WRONG))


def test_a_server_that_does_not_answer_is_given_up() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(CatalogError, match="timeout") as caught:
            CatalogView.load(f"postgresql://u:{WRONG}@127.0.0.1:{port}/db?connect_timeout=2")
    assert "nothing blocks" in caught.value.remedy
    assert WRONG not in str(caught.value)


def test_a_user_that_may_only_read_can_serve_and_do_nothing_else(postgres: PostgresServer, database: str) -> None:
    postgres.execute(
        "CREATE ROLE reader LOGIN",
        "GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader",
        database=database,
    )
    try:
        url = postgres.url(database, user="reader")
        with open_catalog(url) as session:
            assert session.scalars(select(ModelRow)).all() == []
        with (
            pytest.raises(CatalogError, match="permission denied") as caught,
            open_catalog(url, writable=True) as session,
        ):
            session.add(ModelRow(name="n", weights="w", config="c", tokenizer="t", chat_template="h"))
            session.commit()
        assert "Grant" in caught.value.remedy
        postgres.execute("REVOKE SELECT ON cues FROM reader", database=database)
        with pytest.raises(CatalogError, match="permission denied"), open_catalog(url) as session:
            session.execute(text("SELECT * FROM cues"))
    finally:
        postgres.execute("DROP OWNED BY reader", "DROP ROLE reader", database=database)


def test_readers_and_writers_have_their_settings(postgres: PostgresServer, database: str) -> None:
    url = postgres.url(database)
    for name, value in {
        "default_transaction_read_only": "on",
        "transaction_isolation": "repeatable read",
        "statement_timeout": "1min",
        "timezone": "UTC",
        "application_name": "sensecheck",
    }.items():
        assert setting(url, name) == value
    for name, value in {
        "default_transaction_read_only": "off",
        "transaction_isolation": "read committed",
        "statement_timeout": "0",
        "lock_timeout": f"{store.BUSY_TIMEOUT_MS // 1000}s",
    }.items():
        assert setting(url, name, writable=True) == value


def test_settings_in_the_url_prevail_but_never_let_a_reader_write(postgres: PostgresServer, database: str) -> None:
    options = "-c statement_timeout=7s -c default_transaction_read_only=off"
    url = postgres.url(database).update_query_dict({"options": options, "application_name": "mine"})
    assert setting(url, "statement_timeout") == "7s"
    assert setting(url, "application_name") == "mine"
    assert setting(url, "default_transaction_read_only") == "on"


def test_a_query_that_takes_too_long_is_ended(
    postgres: PostgresServer, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "READ_TIMEOUT_MS", 100)
    with (
        pytest.raises(CatalogError, match="statement timeout") as caught,
        open_catalog(postgres.url(database)) as session,
    ):
        session.execute(text("SELECT pg_sleep(600)"))
    assert "statement_timeout" in caught.value.remedy


def test_a_connection_that_breaks_is_a_catalog_error_and_an_engine_gets_over_it(
    postgres: PostgresServer, database: str
) -> None:
    end = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database}'"  # noqa: S608
    with (
        pytest.raises(CatalogError, match=r"terminating|closed") as caught,
        open_catalog(postgres.url(database)) as session,
    ):
        postgres.execute(end)
        session.execute(text("SELECT 1"))
    assert "server runs" in caught.value.remedy
    engine = catalog_engine(postgres.url(database), writable=False)
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT 1")) == 1
    postgres.execute(end)
    with engine.connect() as connection:  # pinged before it is used
        assert connection.scalar(text("SELECT 1")) == 1
    engine.dispose()


def test_a_missing_driver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(CatalogError, match="driver") as caught:
        CatalogView.load(f"postgresql://u:{WRONG}@host/db")
    assert "sensecheck[postgres]" in caught.value.remedy
    assert WRONG not in str(caught.value)


def test_connections_are_closed(postgres: PostgresServer, database: str, tmp_path: Path) -> None:
    for _ in range(5):
        search_features(postgres.url(database), "river")
        upgrade_catalog(postgres.url(database))
        with pytest.raises(CatalogError, match="empty"):
            copy_catalog(postgres.url(database), tmp_path / "copy.sqlite")
    query = text("SELECT count(*) FROM pg_stat_activity WHERE datname = :name")
    engine = catalog_engine(postgres.url(), writable=True)
    end = time.monotonic() + 30
    with engine.connect() as connection:
        while connection.scalar(query, {"name": database}) and time.monotonic() < end:
            time.sleep(0.05)  # a server's process ends some time after its client is gone
        assert connection.scalar(query, {"name": database}) == 0
    engine.dispose()


def test_options_of_a_server_show_no_password(postgres: PostgresServer) -> None:
    options = replace(ServerOptions(), catalog=postgres.tcp_url(), api_key="the-key")
    assert PASSWORD not in repr(options)
    assert "the-key" not in repr(options)
