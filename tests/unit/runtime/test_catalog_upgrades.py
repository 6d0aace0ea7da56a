"""Upgrades of a catalog's schema: several at once, killed after any statement, refused half-way; on both databases."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, inspect, text

from sae_runtime.catalog import store
from sae_runtime.catalog.location import CatalogLocation, full_text
from sae_runtime.catalog.store import alembic_config, changing, open_catalog, upgrade_catalog
from sae_runtime.errors import CatalogError

# One process imports everything once and forks: "together URL N" upgrades in N processes at the same moment, "kill URL N"
# ends itself after the N-th statement. Each line is answered by the children's exit codes.
_UPGRADER = """
import os, signal, sys, traceback
from sqlalchemy import Engine, event
from sae_runtime.catalog.store import upgrade_catalog

def child(location, start, last):
    seen = 0
    def after(*arguments):
        nonlocal seen
        seen += 1
        if seen == last:
            os.kill(os.getpid(), signal.SIGKILL)
    event.listen(Engine, "after_cursor_execute", after)
    os.read(start, 1)
    try:
        upgrade_catalog(location)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)

for line in sys.stdin:
    kind, location, number = line.rstrip("\\n").split("\\t")
    together = int(number) if kind == "together" else 1
    start, go = os.pipe()
    children = []
    for _ in range(together):
        pid = os.fork()
        if pid == 0:
            child(location, start, 0 if kind == "together" else int(number))
        children.append(pid)
    os.write(go, b"x" * together)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
    os.close(start)
    os.close(go)
    print(*codes, flush=True)
"""

Upgrader = Callable[[str, CatalogLocation, int], list[int]]


@pytest.fixture(scope="module")
def upgrader() -> Iterator[Upgrader]:
    process = subprocess.Popen(
        [sys.executable, "-c", _UPGRADER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin
    assert process.stdout
    asked, told = process.stdin, process.stdout

    def run(kind: str, location: CatalogLocation, number: int) -> list[int]:
        asked.write(f"{kind}\t{full_text(location)}\t{number}\n")
        asked.flush()
        return [int(code) for code in told.readline().split()]

    yield run
    asked.close()
    assert process.wait(60) == 0
    told.close()


def migrate(location: CatalogLocation, revision: str) -> None:
    """Bring a catalog to an older revision, with a concept that has a sense and a note."""
    config = alembic_config()
    with changing(location) as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
        connection.execute(
            text(
                "INSERT INTO concepts (slug, pack, forms, site, accuracy, read_below, intended_above) "
                "VALUES ('bank', 'p', '[\"bank\"]', 'rest', 1, 0.2, 0.8)"
            )
        )
        connection.execute(text("INSERT INTO senses (concept_id, slug, gloss, domains) VALUES (1, 'river', 'g', '[]')"))
        connection.execute(text("INSERT INTO notes (sense_id, text) VALUES (1, 'a note')"))


@contextmanager
def looking(location: CatalogLocation) -> Iterator[Connection]:
    engine = store.catalog_engine(location, writable=False)
    with engine.connect() as connection:
        yield connection
    engine.dispose()


def state(location: CatalogLocation) -> dict[str, Any]:
    """The revision, all tables with columns, defaults and indexes, and the rows."""
    with looking(location) as connection:
        found = inspect(connection)
        names = sorted(found.get_table_names())
        return {
            "revision": MigrationContext.configure(connection).get_current_revision(),
            "columns": {n: [(c["name"], str(c["type"]), c["default"]) for c in found.get_columns(n)] for n in names},
            "indexes": {n: sorted(str(index["name"]) for index in found.get_indexes(n)) for n in names},
            "rows": {n: connection.execute(text(f"SELECT * FROM {n}")).all() for n in names},  # noqa: S608
        }


@pytest.mark.parametrize("beginning", [None, "0001"], ids=["empty", "0001"])
def test_upgrades_at_the_same_moment_wait_for_each_other(
    new_location: Callable[[], CatalogLocation], upgrader: Upgrader, beginning: str | None
) -> None:
    alone = new_location()
    if beginning:
        migrate(alone, beginning)
    upgrade_catalog(alone)
    for _ in range(3):
        location = new_location()
        if beginning:
            migrate(location, beginning)
        assert upgrader("together", location, 4) == [0] * 4
        assert state(location) == state(alone)
        with open_catalog(location) as session:
            assert session.connection() is not None


def test_an_upgrade_that_is_killed_after_any_statement_leaves_the_old_revision(
    location: CatalogLocation, upgrader: Upgrader
) -> None:
    migrate(location, "0001")
    before = state(location)
    killed = 0
    while upgrader("kill", location, killed + 1) == [-signal.SIGKILL]:
        killed += 1
        assert state(location) == before
    assert killed > 20  # statements of the upgrade, among them all changes of the schema
    after = state(location)
    assert after["revision"] > "0001"
    assert after["rows"]["concepts"] == before["rows"]["concepts"]
    with open_catalog(location):
        pass


def test_a_large_change_that_is_killed_is_undone_by_the_upgrade_command(tmp_path: Path) -> None:
    """More than fits SQLite's memory is in the file already; a reader, who may not write, cannot undo it."""
    path = tmp_path / "catalog.sqlite"
    upgrade_catalog(path)
    before = state(path)
    change = (
        "import os, signal, sys; from pathlib import Path; from sqlalchemy import text; "
        "from sae_runtime.catalog.store import changing\n"
        "with changing(Path(sys.argv[1])) as connection:\n"
        "    connection.execute(text('PRAGMA cache_size = 4'))\n"
        "    for n in range(300):\n"
        '        connection.execute(text("INSERT INTO concepts (slug, pack, forms, site, accuracy, read_below, "\n'
        "                                f\"intended_above) VALUES ('{n}', '{'x' * 400}', '', '', 0, 0, 0)\"))\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", change, str(path)], check=False).returncode == -signal.SIGKILL
    with pytest.raises(CatalogError) as caught, open_catalog(path):
        raise AssertionError("read a half-written catalog")
    assert f"sensecheck db upgrade {path}" in caught.value.remedy
    upgrade_catalog(path)
    assert state(path) == before


def test_an_upgrade_does_not_wait_for_ever(location: CatalogLocation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "BUSY_TIMEOUT_MS", 50)
    with changing(location), pytest.raises(CatalogError, match="lock") as caught:
        upgrade_catalog(location)
    assert "other program" in caught.value.remedy.lower() or "another program" in caught.value.remedy.lower()


def test_a_first_upgrade_that_is_killed_leaves_nothing(location: CatalogLocation, upgrader: Upgrader) -> None:
    for statement in (10, 20, 30):
        assert upgrader("kill", location, statement) == [-signal.SIGKILL]
        assert not state(location)["columns"]
    upgrade_catalog(location)
    with open_catalog(location):
        pass
