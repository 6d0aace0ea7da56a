"""Catalogs on both databases: schema and migrations agree, broken ones are refused, serving cannot write."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from small_catalogs import downgrade
from sqlalchemy import func, inspect, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from sae_runtime.catalog import store
from sae_runtime.catalog.location import CatalogLocation
from sae_runtime.catalog.store import catalog_engine, create_catalog, open_catalog, seal_catalog, upgrade_catalog
from sae_runtime.catalog.tables import Base, FeatureRow, ModelRow, SaeRow
from sae_runtime.errors import CatalogError, RevisionError


def model(name: str = "tiny") -> ModelRow:
    return ModelRow(name=name, weights="w", config="c", tokenizer="t", chat_template="h")


def sae(**fields: Any) -> SaeRow:
    defaults = {"layer": 2, "hook_name": "h", "architecture": "jumprelu", "d_in": 4, "d_sae": 8, "fingerprint": "f"}
    return SaeRow(**(defaults | fields))


@pytest.fixture
def catalog(location: CatalogLocation) -> CatalogLocation:
    """A catalog with rows, on each database in turn."""
    return filled(location)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A sealed SQLite catalog of several pages."""
    path = tmp_path / "catalog.sqlite"
    filled(path)
    seal_catalog(path)
    return path


def filled(location: CatalogLocation) -> CatalogLocation:
    engine = create_catalog(location)
    with Session(engine) as session, session.begin():
        session.add_all(model(f"model {number} " + "x" * 500) for number in range(60))
    engine.dispose()
    return location


def execute(location: CatalogLocation, statement: str) -> None:
    engine = catalog_engine(location, writable=True)
    with engine.begin() as connection:
        connection.execute(text(statement))
    engine.dispose()


def test_upgrading_creates_every_table_at_the_newest_revision(location: CatalogLocation) -> None:
    engine = create_catalog(location)
    with engine.connect() as connection:
        revision = MigrationContext.configure(connection).get_current_revision()
        tables = set(inspect(connection).get_table_names())
    engine.dispose()
    assert revision == ScriptDirectory.from_config(store.alembic_config()).get_current_head()
    assert tables == set(Base.metadata.tables) | {"alembic_version"}


def test_migrations_and_tables_describe_the_same_schema(location: CatalogLocation) -> None:
    engine = create_catalog(location)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        difference = compare_metadata(context, Base.metadata)
    engine.dispose()
    assert difference == []


def test_constraint_names_are_those_of_the_tables(location: CatalogLocation) -> None:
    """``compare_metadata`` skips check constraints and names, on which later migrations will depend."""
    engine = create_catalog(location)
    inspector = inspect(engine)
    for name, table in Base.metadata.tables.items():
        several = (inspector.get_check_constraints, inspector.get_unique_constraints, inspector.get_foreign_keys)
        found = [item["name"] for get in several for item in get(name)] + [inspector.get_pk_constraint(name)["name"]]
        assert set(found) == {str(constraint.name) for constraint in table.constraints}
    engine.dispose()


def test_downgrading_to_nothing_removes_every_table(location: CatalogLocation) -> None:
    engine = create_catalog(location)
    downgrade(location, "base")
    assert inspect(engine).get_table_names() == ["alembic_version"]
    engine.dispose()


def test_upgrading_again_keeps_the_data(catalog: CatalogLocation) -> None:
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


def test_sealing_leaves_one_file_without_free_pages(file: Path) -> None:
    execute(file, "DELETE FROM models")
    full = file.stat().st_size
    seal_catalog(file)
    assert [path.name for path in file.parent.iterdir()] == ["catalog.sqlite"]
    assert file.stat().st_size < full
    with open_catalog(file) as session:
        assert session.scalar(text("PRAGMA journal_mode")) == "delete"


def test_nobody_else_writes_while_a_catalog_is_sealed(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """POSIX takes all of a process's locks on a file away when it closes that file, however often it has it open."""
    tried = []

    class Connection(sqlite3.Connection):
        def execute(self, statement: str, *arguments: Any) -> sqlite3.Cursor:
            if statement.startswith("PRAGMA user_version"):  # the bytes have just been read
                tried.append(subprocess.run([sys.executable, "-c", other, str(file)], check=False).returncode)
            return super().execute(statement, *arguments)

    other = (
        "import sqlite3, sys\n"
        "try: sqlite3.connect(sys.argv[1], timeout=0, isolation_level=None).execute('BEGIN IMMEDIATE')\n"
        "except sqlite3.OperationalError as error: sys.exit(9 if 'locked' in str(error) else 1)\n"
    )
    connect = sqlite3.connect
    monkeypatch.setattr(
        sqlite3, "connect", lambda *arguments, **options: connect(*arguments, factory=Connection, **options)
    )
    seal_catalog(file)
    assert tried == [9]


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
    file: Path, damage: Callable[[Path], Any], writable: bool
) -> None:
    damage(file)
    with pytest.raises(CatalogError) as caught, open_catalog(file, writable=writable) as session:
        session.scalars(select(ModelRow)).all()
    assert "catalog.sqlite" in caught.value.message
    assert caught.value.remedy


@pytest.mark.parametrize("damage", ["half a header", "other bytes"])
def test_a_broken_file_cannot_be_upgraded(file: Path, damage: str) -> None:
    BROKEN[damage](file)
    with pytest.raises(CatalogError, match=r"catalog\.sqlite.* cannot be upgraded"):
        upgrade_catalog(file)


def test_a_newer_revision_is_refused_by_opening_and_upgrading(catalog: CatalogLocation) -> None:
    execute(catalog, "UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(RevisionError, match="9999") as caught, open_catalog(catalog):
        raise AssertionError("opened a newer catalog")
    assert "Update sensecheck" in caught.value.remedy
    with pytest.raises(RevisionError, match="newer than this program"):
        upgrade_catalog(catalog)


def test_a_file_without_revision_is_sent_to_the_upgrade_command(catalog: CatalogLocation) -> None:
    execute(catalog, "DELETE FROM alembic_version")
    with pytest.raises(RevisionError) as caught, open_catalog(catalog):
        raise AssertionError("opened a catalog without revision")
    assert f"sensecheck db upgrade {catalog}" in caught.value.remedy


def test_a_session_for_serving_cannot_write(catalog: CatalogLocation) -> None:
    with pytest.raises(CatalogError, match=r"read-?only"), open_catalog(catalog) as session:
        session.add(model("new"))
        session.commit()
    with pytest.raises(CatalogError, match=r"read-?only"), open_catalog(catalog) as session:
        session.execute(text("CREATE TABLE other (id INTEGER)"))
    with open_catalog(catalog) as session:
        assert session.scalar(select(func.count()).select_from(ModelRow)) == 60


def test_a_session_for_serving_leaves_the_file_as_it_was(file: Path) -> None:
    before = file.read_bytes()
    with pytest.raises(CatalogError, match="readonly"), open_catalog(file) as session:
        session.add(model("new"))
        session.commit()
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == ["catalog.sqlite"]


def test_a_reader_sees_one_moment_whatever_is_written_meanwhile(catalog: CatalogLocation) -> None:
    with open_catalog(catalog) as reading:
        assert reading.scalar(select(func.count()).select_from(ModelRow)) == 60
        with open_catalog(catalog, writable=True) as writing:
            writing.add(model("new"))
            writing.commit()
        assert reading.scalar(select(func.count()).select_from(ModelRow)) == 60
    with open_catalog(catalog) as reading:
        assert reading.scalar(select(func.count()).select_from(ModelRow)) == 61


def test_what_is_not_committed_is_gone(catalog: CatalogLocation) -> None:
    with open_catalog(catalog, writable=True) as session:
        session.add(model("new"))
        session.flush()
    with open_catalog(catalog) as session:
        assert session.scalar(select(func.count()).select_from(ModelRow)) == 60


def test_a_writable_session_writes(catalog: CatalogLocation) -> None:
    with open_catalog(catalog, writable=True) as session:
        session.add(model("new"))
        session.commit()
    with open_catalog(catalog) as session:
        assert session.scalars(select(ModelRow.name).where(ModelRow.name == "new")).all() == ["new"]


def test_a_locked_catalog_is_a_catalog_error(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "BUSY_TIMEOUT_MS", 10)
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(CatalogError, match="locked"), open_catalog(file) as session:
            session.scalars(select(ModelRow)).all()


def test_a_catalog_that_is_in_use_is_not_sealed(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "BUSY_TIMEOUT_MS", 10)
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(CatalogError, match="locked") as caught:
            seal_catalog(file)
    assert "Close other programs" in caught.value.remedy
    seal_catalog(file)


def test_every_connection_enforces_foreign_keys_and_waits_for_locks(file: Path) -> None:
    for writable in (False, True):
        with open_catalog(file, writable=writable) as session:
            assert session.scalar(text("PRAGMA foreign_keys")) == 1
            assert session.scalar(text("PRAGMA busy_timeout")) == store.BUSY_TIMEOUT_MS


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        (lambda: sae(model_id=99, fingerprint="g"), "FOREIGN KEY|fk_saes_model_id_models"),
        (lambda: model("twice"), "UNIQUE|uq_models_name"),
        (lambda: FeatureRow(sae_id=1, index=0, label="x", density=1.5, max_activation=1.0), "ck_features_density"),
    ],
    ids=["foreign key", "unique", "check"],
)
def test_constraints_are_enforced(location: CatalogLocation, row: Callable[[], Base], fault: str) -> None:
    engine = create_catalog(location)
    with Session(engine) as session:
        session.add(sae(model=model("twice")))
        session.commit()
        session.add(row())
        with pytest.raises(IntegrityError, match=fault):
            session.commit()
    engine.dispose()
