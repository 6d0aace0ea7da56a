"""A catalog that was cut off, or in which a bit was flipped, is refused with a remedy; it never reads anything wrongly."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from faults.making import make_artefacts
from sqlalchemy import select

from middleware import SAEAnnotator, ServerSource
from sae_runtime.catalog.file import check_seal
from sae_runtime.catalog.store import open_catalog, seal_catalog, upgrade_catalog
from sae_runtime.catalog.tables import NoteRow
from sae_runtime.catalog.view import CatalogView
from sae_runtime.errors import CatalogError, SensecheckError
from sae_runtime.paths import CATALOG_FILE

# Bytes of the header that SQLite itself writes when the seal is made; nothing of the catalog is in them.
BOOKKEEPING = [*range(24, 28), *range(92, 100)]
SEAL = range(60, 64)


@pytest.fixture
def catalog(artefacts: Path) -> Path:
    """A finished catalog, as it is shipped."""
    return artefacts / CATALOG_FILE


def flipped(data: bytes, byte: int, bit: int) -> bytes:
    return data[:byte] + bytes([data[byte] ^ (1 << bit)]) + data[byte + 1 :]


def test_a_flipped_bit_anywhere_is_refused(catalog: Path) -> None:
    data, view = catalog.read_bytes(), CatalogView.load(catalog)
    draw = random.Random(0)
    places = {*range(100), *range(0, len(data), 997), *(draw.randrange(len(data)) for _ in range(200))}
    for byte in sorted(places):
        catalog.write_bytes(flipped(data, byte, draw.randrange(8)))
        if byte in BOOKKEEPING:
            try:
                assert CatalogView.load(catalog) == view
            except CatalogError:
                continue  # SQLite itself minds
        else:
            with pytest.raises(CatalogError) as caught:
                CatalogView.load(catalog)
            assert str(catalog) in caught.value.message
            assert caught.value.remedy


def test_a_catalog_cut_off_anywhere_is_refused(catalog: Path) -> None:
    data = catalog.read_bytes()
    for size in [*range(0, len(data), 1111), *range(0, len(data), 4096), len(data) - 1]:
        catalog.write_bytes(data[:size])
        with pytest.raises(CatalogError):
            CatalogView.load(catalog)


def test_a_catalog_with_bytes_behind_its_end_is_refused(catalog: Path) -> None:
    with catalog.open("ab") as file:
        file.write(bytes(4096))
    with pytest.raises(CatalogError, match="damaged"):
        CatalogView.load(catalog)


def test_without_a_seal_damage_is_refused_or_harmless_but_never_a_crash(catalog: Path) -> None:
    """As in catalogs that were made before there were seals: SQLite's own checks are all there is."""
    with closing(sqlite3.connect(catalog)) as connection, connection:
        connection.execute("PRAGMA user_version = 0")
    data = catalog.read_bytes()
    draw = random.Random(1)
    refused = 0
    for _ in range(400):
        damaged = bytearray(data)
        for _ in range(draw.choice([1, 1, 8, 64])):
            damaged[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        damaged[SEAL.start : SEAL.stop] = bytes(4)
        catalog.write_bytes(damaged)
        try:
            CatalogView.load(catalog)
        except SensecheckError as error:
            assert isinstance(error, CatalogError)
            assert error.remedy
            refused += 1
    assert refused > 20


def rows(path: Path) -> list[str]:
    with open_catalog(path) as session:
        return list(session.scalars(select(NoteRow.text)))


def change(path: Path) -> None:
    """Write to a catalog with another program than ours."""
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE notes SET text = 'Mine.'")


def test_a_change_with_another_program_is_refused_until_it_is_sealed_again(catalog: Path) -> None:
    change(catalog)
    with pytest.raises(CatalogError, match="not the file that was finished") as caught:
        CatalogView.load(catalog)
    assert f"sensecheck db upgrade {catalog}" in caught.value.remedy
    upgrade_catalog(catalog)
    check_seal(catalog)
    assert {sense.note for sense in CatalogView.load(catalog).concepts[0].senses} == {"Mine."}


def test_a_change_with_our_own_session_breaks_no_seal(catalog: Path) -> None:
    with open_catalog(catalog, writable=True) as session:
        session.scalars(select(NoteRow)).first().text = "Ours."  # type: ignore[union-attr]
        session.commit()
    assert "Ours." in {sense.note for sense in CatalogView.load(catalog).concepts[0].senses}
    seal_catalog(catalog)
    sealed = catalog.read_bytes()
    assert any(sealed[SEAL.start : SEAL.stop])
    seal_catalog(catalog)
    check_seal(catalog)


def test_what_was_not_committed_leaves_the_seal(catalog: Path) -> None:
    with pytest.raises(KeyboardInterrupt), open_catalog(catalog, writable=True) as session:
        session.scalars(select(NoteRow)).first().text = "Half."  # type: ignore[union-attr]
        session.flush()
        raise KeyboardInterrupt
    seal_catalog(catalog)
    assert rows(catalog) == ["First.", "First."]


@pytest.mark.parametrize(
    "opening",
    [
        lambda model, folder: SAEAnnotator.from_catalog(str(model), artefacts=folder),
        lambda model, folder: ServerSource("http://127.0.0.1:1", artefacts=folder),
    ],
    ids=["in this process", "compared with a server's"],
)
def test_whoever_opens_it_is_told(tiny: Path, catalog: Path, opening: Callable[[Path, Path], Any]) -> None:
    data = catalog.read_bytes()
    catalog.write_bytes(flipped(data, data.rindex(b"First."), 0))
    with pytest.raises(CatalogError, match="damaged"):
        opening(tiny, catalog.parent)


def test_all_catalogs_that_are_made_are_sealed(tiny: Path, tmp_path: Path) -> None:
    folder = make_artefacts(tmp_path / "made", tiny)
    upgrade_catalog(tmp_path / "empty.sqlite")
    for path in (folder / CATALOG_FILE, tmp_path / "empty.sqlite"):
        assert any(path.read_bytes()[SEAL.start : SEAL.stop])
        check_seal(path)
