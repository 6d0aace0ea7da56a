"""Copies of catalogs between both databases: whole and equal, or nothing."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from small_catalogs import downgrade, filling
from sqlalchemy import URL, func, select, text

from sae_runtime.catalog import copying
from sae_runtime.catalog.browse import sense_contexts, sense_rows
from sae_runtime.catalog.copying import copy_catalog
from sae_runtime.catalog.location import CatalogLocation, full_text
from sae_runtime.catalog.store import catalog_engine, create_catalog, open_catalog, upgrade_catalog
from sae_runtime.catalog.tables import (
    Base,
    BuildRow,
    ConceptRow,
    CueRow,
    FeatureExampleRow,
    FeatureRow,
    ModelRow,
    NoteRow,
    SenseContextRow,
    SenseRow,
    SignatureRow,
    SignatureWeightRow,
)
from sae_runtime.catalog.view import CatalogView, feature_detail
from sae_runtime.errors import CatalogError, RevisionError
from sae_runtime.models.manifest import SMALL_MODEL
from sae_runtime.paths import CATALOG_FILE, artefacts_for

SHIPPED = artefacts_for(SMALL_MODEL) / CATALOG_FILE
STRANGE = "é \U0001f600 ﷽ \u202e \u2028 <|im_end|> \\ ' \" % _ {} \x01\x7f\t\n"


def fill(location: CatalogLocation, name: str = "tiny", text: str = STRANGE) -> CatalogLocation:
    """A catalog with a row in most tables, and with what is hard to keep: strange text, long floats, nulls, gaps in ids."""
    with filling(location, model=name) as (session, sae):
        example = FeatureExampleRow(text=text, start=0, end=1, activation=0.1 + 0.2)
        histogram = {"edges": [0.1 + 0.2, 1e-300], "counts": [2**40, 0], text: None}
        feature = FeatureRow(sae_id=sae.id, index=2**24 - 1, label=text, density=1 / 3, max_activation=5e-324, id=7,
                             examples=[example], histogram=histogram, predicate={"z": 1, "a": [text]}, validated=True)  # fmt: skip
        session.add_all(
            [feature, FeatureRow(sae_id=sae.id, index=0, label="", density=0.0, max_activation=1e308, id=3)]
        )
        session.flush()
        sense = SenseRow(
            slug="river", gloss=text, domains=[text], contexts=[SenseContextRow(text=text, start=0, end=1, held_out=True)],
            signature=SignatureRow(bias=-0.0, weights=[SignatureWeightRow(feature_id=7, weight=-1 / 3)]),
            cues=[CueRow(stem=stem, weight=0.1) for stem in ("é", "e", "E", "_", "z")], notes=[NoteRow(text=text)],
        )  # fmt: skip
        session.add(ConceptRow(slug="bank", pack="p", forms=["bank", text], site="rest", accuracy=1.0, text_accuracy=None,
                               read_below=0.2, intended_above=0.8, senses=[sense]))  # fmt: skip
        at = datetime(2026, 3, 29, 2, 30, 0, 123456)  # an hour that does not exist in many time zones
        session.add(
            BuildRow(sae_id=sae.id, created_at=at, config={"x": [1.5, None, True]}, data={}, versions={}, figures={})
        )
    return location


def contents(location: CatalogLocation) -> dict[str, list[str]]:
    """All rows of all tables."""
    with open_catalog(location) as session:
        return {t.name: sorted(repr(row) for row in session.execute(select(t))) for t in Base.metadata.sorted_tables}


def write(location: CatalogLocation, statement: str) -> None:
    engine = catalog_engine(location, writable=True)
    with engine.begin() as connection:
        connection.execute(text(statement))
    engine.dispose()


def test_a_copy_holds_the_same_rows_to_the_last_digit(
    tmp_path: Path, new_location: Callable[[], CatalogLocation]
) -> None:
    """File to each database, from there to the same kind, and back to a file."""
    first = fill(tmp_path / "first.sqlite")
    second, third, last = new_location(), new_location(), tmp_path / "last.sqlite"
    counts = copy_catalog(first, second)
    assert counts == copy_catalog(second, third) == copy_catalog(third, last)
    assert counts["cues"] == 5
    expected = contents(first)
    assert {name: len(rows) for name, rows in expected.items()} == counts
    for copied in (second, third, last):
        assert contents(copied) == expected
        assert CatalogView.load(copied) == CatalogView.load(first)
        assert list(CatalogView.load(copied).concepts[0].senses[0].cues) == ["E", "_", "e", "z", "é"]
        assert feature_detail(copied, 2**24 - 1) == feature_detail(first, 2**24 - 1)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("last")] == ["last.sqlite"]


def test_the_shipped_catalog_is_the_same_on_every_database(shipped: CatalogLocation) -> None:
    ours, theirs = CatalogView.load(shipped), CatalogView.load(SHIPPED)
    assert ours == theirs
    assert list(ours.features) == list(theirs.features)
    for our, their in zip(ours.concepts, theirs.concepts, strict=True):
        for sense, other in zip(our.senses, their.senses, strict=True):
            assert list(sense.weights.items()) == list(other.weights.items())  # sums in another order differ
            assert list(sense.cues.items()) == list(other.cues.items())
    assert sense_rows(shipped) == sense_rows(SHIPPED)
    for slug in ("bank", "less_than", "break_the_ice"):
        assert sense_contexts(shipped, slug) == sense_contexts(SHIPPED, slug)
    for index in list(theirs.features)[::200]:
        assert feature_detail(shipped, index) == feature_detail(SHIPPED, index)


def test_rows_that_are_added_to_a_copy_get_ids_of_their_own(tmp_path: Path, location: CatalogLocation) -> None:
    copy_catalog(fill(tmp_path / "first.sqlite"), location)
    with open_catalog(location, writable=True) as session:
        session.add(FeatureRow(sae_id=1, index=1, label="new", density=0.1, max_activation=1.0))
        session.add(ModelRow(name="new", weights="w", config="c", tokenizer="t", chat_template="h"))
        session.commit()
        assert session.scalar(select(FeatureRow.id).where(FeatureRow.label == "new")) == 8
        assert session.scalar(select(func.count()).select_from(ModelRow)) == 2


def test_a_catalog_is_replaced_only_when_told(tmp_path: Path, location: CatalogLocation) -> None:
    fill(location, "old")
    new = fill(tmp_path / "new.sqlite", "new")
    before = contents(location)
    with pytest.raises(CatalogError, match="holds a catalog already of old") as caught:
        copy_catalog(new, location)
    assert "--replace" in caught.value.remedy
    assert contents(location) == before
    copy_catalog(new, location, replace=True)
    assert contents(location) == contents(new)


def test_whoever_reads_while_a_catalog_is_replaced_sees_the_old_one(
    tmp_path: Path, location: CatalogLocation, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(location, "old")
    new = fill(tmp_path / "new.sqlite", "new")
    seen = []
    add = copying._add

    def looking(*arguments: Any) -> Any:
        seen.append(CatalogView.load(location).model_name)
        return add(*arguments)

    monkeypatch.setattr(copying, "_add", looking)
    copy_catalog(new, location, replace=True)
    assert set(seen) == {"old"}
    assert len(seen) > 20
    assert CatalogView.load(location).model_name == "new"


@pytest.mark.parametrize("held", [False, True], ids=["new", "replaced"])
def test_a_copy_that_fails_leaves_what_was_there(
    tmp_path: Path, location: CatalogLocation, monkeypatch: pytest.MonkeyPatch, held: bool
) -> None:
    new = fill(tmp_path / "new.sqlite", "new")
    if held:
        fill(location, "old")
        before = contents(location)
    sums = iter(range(1_000))
    monkeypatch.setattr(copying, "_add", lambda total, rows: (next(sums), 0))
    with pytest.raises(CatalogError, match=r"does not return what was written to table 'concepts'") as caught:
        copy_catalog(new, location, replace=held)
    assert str(location) in caught.value.message
    if held:
        assert contents(location) == before
    elif isinstance(location, Path):
        assert not location.exists()
    else:
        with pytest.raises(RevisionError), open_catalog(location):
            raise AssertionError("opened an empty database")
    left = {path.name for path in tmp_path.iterdir()} - {"new.sqlite", "new.sqlite-wal", "new.sqlite-shm"}
    assert left <= {"catalog-0.sqlite", "catalog-0.sqlite-wal", "catalog-0.sqlite-shm"}


def test_a_copy_that_is_killed_leaves_what_was_there(location: CatalogLocation) -> None:
    """Killed when all but the last table are written, in both databases far more than their memory holds."""
    fill(location, "old")
    before = contents(location)
    program = (
        "import os, signal, sys; from sqlalchemy import Engine, event; "
        "from sae_runtime.catalog.copying import copy_catalog\n"
        "def after(connection, cursor, statement, *rest):\n"
        "    if statement.startswith('INSERT INTO signature_weights'): os.kill(os.getpid(), signal.SIGKILL)\n"
        "event.listen(Engine, 'after_cursor_execute', after)\n"
        "copy_catalog(sys.argv[1], sys.argv[2], replace=True)\n"
    )
    command = [sys.executable, "-c", program, str(SHIPPED), full_text(location)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    upgrade_catalog(location)
    assert contents(location) == before


def test_an_older_target_is_upgraded_and_an_older_source_refused(
    tmp_path: Path, location: CatalogLocation, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = fill(tmp_path / "new.sqlite")
    upgrade_catalog(location)
    downgrade(location, "0004")
    with pytest.raises(RevisionError) as caught:
        copy_catalog(location, tmp_path / "other.sqlite")
    assert f"sensecheck db upgrade {location}" in caught.value.remedy
    assert not (tmp_path / "other.sqlite").exists()
    copy_catalog(new, location)
    assert contents(location) == contents(new)


def test_what_cannot_be_copied_is_refused(tmp_path: Path, location: CatalogLocation) -> None:
    with pytest.raises(CatalogError, match="no catalog"):
        copy_catalog(tmp_path / "none.sqlite", location)
    create_catalog(tmp_path / "empty.sqlite").dispose()
    with pytest.raises(CatalogError, match="empty"):
        copy_catalog(tmp_path / "empty.sqlite", location, replace=True)
    fill(location)
    with pytest.raises(CatalogError, match="to itself"):
        copy_catalog(location, location, replace=True)
    with pytest.raises(CatalogError, match="cannot be written") as caught:
        copy_catalog(location, tmp_path / "no-folder" / "catalog.sqlite")
    assert "folder" in caught.value.remedy
    with pytest.raises(CatalogError, match="cannot be written"):
        copy_catalog(location, tmp_path, replace=True)


@pytest.mark.postgres
def test_text_that_postgresql_cannot_hold_is_named(tmp_path: Path, postgres: Any) -> None:
    source = fill(tmp_path / "new.sqlite", text="a\0b")
    url: URL = postgres.new_database()
    with pytest.raises(CatalogError, match=r"Row '1' of 'concepts'|Row '.' of '\w+' in .* holds a NUL") as caught:
        copy_catalog(source, url)
    assert "PostgreSQL cannot hold one" in caught.value.remedy
    with pytest.raises(RevisionError), open_catalog(url):
        raise AssertionError("something was written")


@pytest.mark.postgres
def test_a_database_with_other_tables_is_left_alone(tmp_path: Path, postgres: Any) -> None:
    url: URL = postgres.new_database()
    postgres.execute("CREATE TABLE notes (mine TEXT)", "INSERT INTO notes VALUES ('x')", database=url.database)
    with pytest.raises(CatalogError, match="already exists") as caught:
        copy_catalog(fill(tmp_path / "new.sqlite"), url)
    assert "search_path" in caught.value.remedy
    postgres.execute("CREATE SCHEMA readings", database=url.database)
    apart = url.update_query_dict({"options": "-c search_path=readings"})
    copy_catalog(tmp_path / "new.sqlite", apart)
    assert contents(apart) == contents(tmp_path / "new.sqlite")
    postgres.execute("ALTER TABLE public.notes ADD CHECK (mine = 'x')", database=url.database)
