"""A damaged catalog is refused with a CatalogError, or all that reads catalogs works with it; a sealed one is always refused."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from functools import cache
from pathlib import Path

from hypothesis import strategies as st

from sae_runtime.catalog.browse import sense_contexts, sense_rows
from sae_runtime.catalog.search import search_features
from sae_runtime.catalog.store import seal_catalog
from sae_runtime.catalog.view import CatalogView, feature_detail, latest_build
from sae_runtime.detector import Detector
from sae_runtime.errors import CatalogError

from ..damage import ByteEdit, byte_edits, damaged
from ..files import scratch
from ..small_catalog import encoder, features_of, small_catalog

Case = tuple[str, list[ByteEdit], list[tuple[int, int, int]]]

# Values of another type than the column's, which SQLite takes everywhere; -1 removes the row, to which others may refer.
_VALUES = (None, "", "x", "[]", "{}", "[1]", '{"a": 1}', "nan", -1, 0, 1, 2**40, 0.5, 1e308, b"\xff\xfe", b"[")
_uses = st.sampled_from(["whole", "stored", "page"])
CASES: st.SearchStrategy[Case] = st.one_of(
    st.tuples(_uses, byte_edits(), st.just([])),
    st.tuples(
        _uses,
        st.just([]),
        st.lists(
            st.tuples(st.integers(0, 200), st.integers(0, 40), st.integers(-1, len(_VALUES) - 1)),
            min_size=1,
            max_size=2,
        ),
    ),
    st.tuples(st.just("sealed"), byte_edits(), st.just([])),
)
_TEXT = "The bank by the river had a bat, and a mouse ate the port."
_BOOKKEEPING = (slice(24, 28), slice(60, 64), slice(92, 100))  # of the header: not under the seal


def check(case: Case) -> None:
    """See the module."""
    use, edits, changes = case
    whole = _sealed() if use == "sealed" else small_catalog()
    content = damaged(whole, edits)
    path = _fresh()
    path.write_bytes(content)
    for change in changes:
        _change(path, *change)
    try:
        if use == "page":
            _look_around(path)
        else:
            _serve(path, whole=use != "stored")
    except CatalogError as error:
        assert error.message and error.remedy, "an error without remedy"
        return
    assert use != "sealed" or _under_seal(content) == _under_seal(whole) or content[60:64] == bytes(4), "a broken seal"


def _fresh() -> Path:
    """A file without what earlier cases left beside it: a journal of theirs would be taken for this one's."""
    path = scratch() / "catalog.sqlite"
    for old in path.parent.glob(f"{path.name}*"):
        old.unlink()
    return path


@cache
def _sealed() -> bytes:
    path = scratch() / "sealed.sqlite"
    path.write_bytes(small_catalog())
    seal_catalog(path)
    return path.read_bytes()


def _under_seal(content: bytes) -> bytes:
    data = bytearray(content)
    for field in _BOOKKEEPING:
        data[field] = bytes(len(data[field]))
    return bytes(data)


def _change(path: Path, place: int, column: int, value: int) -> None:
    """Put a value into one cell, or remove its row; what SQLite itself refuses is left as it was."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        table = tables[place % len(tables)]
        described = list(connection.execute(f"PRAGMA table_info({table})"))
        columns = [row[1] for row in described]
        key = ", ".join(f'"{row[1]}"' for row in described if row[5])
        (rows,) = connection.execute(f"SELECT count(*) FROM {table}").fetchone()  # noqa: S608
        where = f"({key}) = (SELECT {key} FROM {table} LIMIT 1 OFFSET {place % max(1, rows)})"  # noqa: S608
        try:
            if value < 0:
                connection.execute(f"DELETE FROM {table} WHERE {where}")  # noqa: S608
            else:
                name = columns[column % len(columns)]
                connection.execute(f'UPDATE {table} SET "{name}" = ? WHERE {where}', (_VALUES[value],))  # noqa: S608
        except sqlite3.IntegrityError:
            return


def _serve(path: Path, *, whole: bool) -> None:
    """What serving does with a catalog: open it, plan a prompt, judge it."""
    view = CatalogView.load(path, whole=whole)
    detector = Detector(view, encoder(), 512)
    plan = detector.plan([{"role": "user", "content": _TEXT}], domain="finance", tokens=True)
    reading = detector.reading(plan, features_of(plan, view))
    for mention in reading.mentions:
        assert mention.text == _TEXT[mention.start : mention.end], "a mention that is not there"
    reading.model_dump_json()


def _look_around(path: Path) -> None:
    """What the page does with a catalog."""
    rows = sense_rows(path)
    if rows:
        sense_contexts(path, rows[0].concept)
    for hit in search_features(path, "the", limit=1):
        found = feature_detail(path, hit.index)
        if found is not None:
            found.model_dump_json()
    latest_build(path)
