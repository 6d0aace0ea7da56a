"""Catalog files: schema and migrations agree, broken files are refused, serving cannot write."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import func, inspect, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from sae_runtime.catalog import store
from sae_runtime.catalog.store import catalog_engine, create_catalog, open_catalog, seal_catalog, upgrade_catalog
from sae_runtime.catalog.tables import Base, FeatureRow, ModelRow, SaeRow
from sae_runtime.errors import CatalogError, RevisionError


def migrations() -> Config:
    config = Config()
    config.set_main_option("script_location", str(resources.files("migrations")))
    return config


def model(name: str = "tiny") -> ModelRow:
    return ModelRow(name=name, weights="w", config="c", tokenizer="t", chat_template="h")


def sae(**fields: Any) -> SaeRow:
    defaults = {"layer": 2, "hook_name": "h", "architecture": "jumprelu", "d_in": 4, "d_sae": 8, "fingerprint": "f"}
    return SaeRow(**(defaults | fields))


@pytest.fixture
def catalog(tmp_path: Path) -> Path:
    """A sealed catalog of several pages."""
    path = tmp_path / "catalog.sqlite"
    engine = create_catalog(path)
    with Session(engine) as session, session.begin():
        session.add_all(model(f"model {number} " + "x" * 500) for number in range(60))
    engine.dispose()
    seal_catalog(path)
    return path


def execute(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(statement)


def test_upgrading_creates_every_table_at_the_newest_revision(tmp_path: Path) -> None:
    engine = create_catalog(tmp_path / "new.sqlite")
    with engine.connect() as connection:
        revision = MigrationContext.configure(connection).get_current_revision()
        tables = set(inspect(connection).get_table_names())
    engine.dispose()
    assert revision == ScriptDirectory.from_config(migrations()).get_current_head()
    assert tables == set(Base.metadata.tables) | {"alembic_version"}


def test_migrations_and_tables_describe_the_same_schema(tmp_path: Path) -> None:
    engine = create_catalog(tmp_path / "new.sqlite")
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        difference = compare_metadata(context, Base.metadata)
    engine.dispose()
    assert difference == []


def test_constraint_names_are_those_of_the_tables(tmp_path: Path) -> None:
    """``compare_metadata`` skips check constraints and names, on which later migrations will depend."""
    engine = create_catalog(tmp_path / "new.sqlite")
    inspector = inspect(engine)
    for name, table in Base.metadata.tables.items():
        several = (inspector.get_check_constraints, inspector.get_unique_constraints, inspector.get_foreign_keys)
        found = [item["name"] for get in several for item in get(name)] + [inspector.get_pk_constraint(name)["name"]]
        assert set(found) == {str(constraint.name) for constraint in table.constraints}
    engine.dispose()


def test_downgrading_to_nothing_removes_every_table(tmp_path: Path) -> None:
    engine = create_catalog(tmp_path / "new.sqlite")
    with engine.begin() as connection:
        config = migrations()
        config.attributes["connection"] = connection
        command.downgrade(config, "base")
    assert inspect(engine).get_table_names() == ["alembic_version"]
    engine.dispose()


def test_upgrading_again_keeps_the_data(catalog: Path) -> None:
    upgrade_catalog(catalog)
    with open_catalog(catalog) as session:
        assert session.scalar(select(func.count()).select_from(ModelRow)) == 60


@pytest.mark.parametrize("name", ["a b", "ü", "a@b", "c#1", "100%41", "what?", "a&mode=ro"])
def test_a_folder_of_any_name_can_hold_a_catalog(tmp_path: Path, name: str) -> None:
    path = tmp_path / name / "catalog.sqlite"
    path.parent.mkdir()
    create_catalog(path).dispose()
    assert [found.name for found in tmp_path.iterdir()] == [name]
    with open_catalog(path) as session:
        assert session.scalars(select(ModelRow)).all() == []


def test_sealing_leaves_one_file_without_free_pages(catalog: Path) -> None:
    execute(catalog, "DELETE FROM models")
    full = catalog.stat().st_size
    seal_catalog(catalog)
    assert [path.name for path in catalog.parent.iterdir()] == ["catalog.sqlite"]
    assert catalog.stat().st_size < full
    with open_catalog(catalog) as session:
        assert session.scalar(text("PRAGMA journal_mode")) == "delete"


def test_a_missing_file_is_refused_and_not_made(tmp_path: Path) -> None:
    path = tmp_path / "none.sqlite"
    for writable in (False, True):
        with pytest.raises(CatalogError, match=r"no catalog .*none\.sqlite"), open_catalog(path, writable=writable):
            raise AssertionError("opened a missing file")
    assert not path.exists()


def cut(size: Callable[[int], int]) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        data = path.read_bytes()
        path.write_bytes(data[: size(len(data))])

    return apply


BROKEN: dict[str, Callable[[Path], Any]] = {
    "empty": cut(lambda size: 0),
    "half a header": cut(lambda size: 50),
    "first page alone": cut(lambda size: 4096),
    "half": cut(lambda size: size // 2),
    "last page missing": cut(lambda size: size - 4096),
    "other bytes": lambda path: path.write_bytes(b"no database\n" * 1000),
    "overwritten pages": lambda path: path.write_bytes(path.read_bytes()[:4096] + b"\x00" * 40_960),
}


@pytest.mark.parametrize("writable", [False, True], ids=["read", "write"])
@pytest.mark.parametrize("damage", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_file_is_a_catalog_error_with_a_remedy(
    catalog: Path, damage: Callable[[Path], Any], writable: bool
) -> None:
    damage(catalog)
    with pytest.raises(CatalogError) as caught, open_catalog(catalog, writable=writable) as session:
        session.scalars(select(ModelRow)).all()
    assert "catalog.sqlite" in caught.value.message
    assert caught.value.remedy


@pytest.mark.parametrize("damage", ["half a header", "other bytes"])
def test_a_broken_file_cannot_be_upgraded(catalog: Path, damage: str) -> None:
    BROKEN[damage](catalog)
    with pytest.raises(CatalogError, match=r"catalog\.sqlite.* cannot be upgraded"):
        upgrade_catalog(catalog)


def test_a_newer_revision_is_refused_by_opening_and_upgrading(catalog: Path) -> None:
    execute(catalog, "UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(RevisionError, match="9999") as caught, open_catalog(catalog):
        raise AssertionError("opened a newer catalog")
    assert "Update sensecheck" in caught.value.remedy
    with pytest.raises(RevisionError, match="newer than this program"):
        upgrade_catalog(catalog)


def test_a_file_without_revision_is_sent_to_the_upgrade_command(catalog: Path) -> None:
    execute(catalog, "DELETE FROM alembic_version")
    with pytest.raises(RevisionError) as caught, open_catalog(catalog):
        raise AssertionError("opened a catalog without revision")
    assert f"sensecheck db upgrade {catalog}" in caught.value.remedy


def test_a_session_for_serving_cannot_write(catalog: Path) -> None:
    before = catalog.read_bytes()
    with pytest.raises(CatalogError, match="readonly"), open_catalog(catalog) as session:
        session.add(model("new"))
        session.commit()
    assert catalog.read_bytes() == before


def test_a_writable_session_writes(catalog: Path) -> None:
    with open_catalog(catalog, writable=True) as session:
        session.add(model("new"))
        session.commit()
    with open_catalog(catalog) as session:
        assert session.scalars(select(ModelRow.name).where(ModelRow.name == "new")).all() == ["new"]


def test_a_locked_catalog_is_a_catalog_error(catalog: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "BUSY_TIMEOUT_MS", 10)
    with closing(sqlite3.connect(catalog, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(CatalogError, match="locked"), open_catalog(catalog) as session:
            session.scalars(select(ModelRow)).all()


def test_every_connection_enforces_foreign_keys_and_waits_for_locks(catalog: Path) -> None:
    for writable in (False, True):
        with open_catalog(catalog, writable=writable) as session:
            assert session.scalar(text("PRAGMA foreign_keys")) == 1
            assert session.scalar(text("PRAGMA busy_timeout")) == store.BUSY_TIMEOUT_MS


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        (lambda: sae(model_id=99, fingerprint="g"), "FOREIGN KEY"),
        (lambda: model("twice"), "UNIQUE"),
        (lambda: FeatureRow(sae_id=1, index=0, label="x", density=1.5, max_activation=1.0), "ck_features_density"),
    ],
    ids=["foreign key", "unique", "check"],
)
def test_constraints_are_enforced(tmp_path: Path, row: Callable[[], Base], fault: str) -> None:
    create_catalog(tmp_path / "c.sqlite").dispose()
    engine = catalog_engine(tmp_path / "c.sqlite", writable=True)
    with Session(engine) as session:
        session.add(sae(model=model("twice")))
        session.commit()
        session.add(row())
        with pytest.raises(IntegrityError, match=fault):
            session.commit()
    engine.dispose()
