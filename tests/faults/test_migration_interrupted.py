"""An upgrade of the schema is killed before each of its statements: the catalog is the old one or the new one."""

from __future__ import annotations

import shutil
import signal
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from alembic import command
from faults.killing import Surroundings, ends, start, upgrade
from faults.making import eventually
from sqlalchemy import create_engine

from sae_runtime.catalog.store import alembic_config, open_catalog, upgrade_catalog
from sae_runtime.errors import RevisionError
from sae_runtime.paths import CATALOG_FILE

AROUND = Surroundings()


def contents(path: Path) -> list[str]:
    """Schema and rows, whatever is in a log beside the file included."""
    with closing(sqlite3.connect(path)) as connection:
        return sorted(connection.iterdump())


@pytest.fixture
def old(artefacts: Path) -> Path:
    """A catalog with data at the first revision."""
    path = artefacts / CATALOG_FILE
    config = alembic_config()
    engine = create_engine(f"sqlite:///{path}")  # without foreign keys: the way down builds tables anew
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "0001")
    engine.dispose()
    return path


def test_an_upgrade_killed_anywhere_leaves_the_old_or_the_new_catalog(old: Path, tmp_path: Path) -> None:
    whole = Path(shutil.copy(old, tmp_path / "whole.sqlite"))
    upgrade_catalog(whole)
    before, after = contents(old), contents(whole)
    assert before != after
    statement, found = 0, []
    while True:
        statement += 1
        path = Path(shutil.copy(old, tmp_path / "killed.sqlite"))
        code = ends(upgrade, str(path), statement, around=AROUND)
        state = contents(path)
        assert state in (before, after), statement
        found.append(state == after)
        if code == 0:
            break
        assert code == -signal.SIGKILL
        if state == before:
            with pytest.raises(RevisionError, match="sensecheck db upgrade"), open_catalog(path):
                raise AssertionError("opened an old catalog")
        upgrade_catalog(path)
        assert contents(path) == after
        with open_catalog(path):
            pass
    assert len(found) > 10
    assert found == sorted(found)  # old up to some statement, new from there on
    assert found[-1]


def test_a_new_catalog_killed_anywhere_is_none_or_whole(tmp_path: Path) -> None:
    upgrade_catalog(tmp_path / "whole.sqlite")
    after = contents(tmp_path / "whole.sqlite")
    for statement in (1, 2, 3, 8, 20, 30):
        path = tmp_path / f"{statement}.sqlite"
        assert ends(upgrade, str(path), statement, around=AROUND) == -signal.SIGKILL
        assert contents(path) in (contents(tmp_path / "none.sqlite"), after)
        upgrade_catalog(path)
        assert contents(path) == after


def test_of_two_upgrades_at_once_one_waits_for_the_other(old: Path) -> None:
    both = [start(upgrade, str(old), around=AROUND) for _ in range(2)]
    for process in both:
        process.join()
    assert {process.exitcode for process in both} <= {0, 3}  # 3: the other one held it too long, and it says so
    assert 0 in {process.exitcode for process in both}
    eventually(lambda: not list(old.parent.glob("*-wal")))
    with open_catalog(old):
        pass
