"""The catalog is replaced while it is served: what fits takes over between two readings, anything else is refused."""

from __future__ import annotations

import logging
import pickle
import re
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from faults.making import LAYER, MESSAGES, PATIENCE, TEXT, eventually, hold, make_artefacts, put_bytes, put_catalog
from langchain_core.messages import HumanMessage

from middleware import CatalogSource, InspectionRequest, SAEAnnotator
from sae_runtime.build.folders import replace_folder
from sae_runtime.catalog.file import CatalogFile
from sae_runtime.detector import Inspector, Reading
from sae_runtime.glossary import Glossary
from sae_runtime.paths import CATALOG_FILE
from sae_runtime.serving import reload

pytestmark = pytest.mark.usefixtures("eager")

HELLO: Any = [{"role": "user", "content": "Hello."}]  # mentions nothing, so the model is not asked


@pytest.fixture
def second(tiny: Path, tmp_path: Path) -> Path:
    """Artefacts with the same dictionary and another catalog; the note says "Second."."""
    return make_artefacts(tmp_path / "second", tiny, note="Second.")


@pytest.fixture
def source(tiny: Path, artefacts: Path) -> CatalogSource:
    return CatalogSource.open(str(tiny), artefacts=artefacts)


def read(source: CatalogSource, messages: Any = MESSAGES, **options: Any) -> Reading:
    return source.inspect(InspectionRequest(messages, [0], **options), deadline=PATIENCE)


def note(reading: Reading) -> str:
    (misread,) = reading.misreads
    return misread.note


def facts(reading: Reading) -> dict[str, Any]:
    """A reading without the time it took."""
    return reading.model_dump(exclude={"timings_ms"})


def test_the_new_catalog_reads_without_a_restart(source: CatalogSource, artefacts: Path, second: Path) -> None:
    assert note(read(source)) == "First."
    before = source.catalog
    assert before is not None
    put_catalog(second, artefacts)
    eventually(lambda: note(read(source)) == "Second.")
    after = source.catalog
    assert after is not None
    assert after.fingerprint == CatalogFile.of(artefacts / CATALOG_FILE).fingerprint != before.fingerprint
    assert (after.replaced, after.refused) == (1, None)


def test_a_chain_never_notices(tiny: Path, artefacts: Path, second: Path) -> None:
    annotator = SAEAnnotator.from_catalog(str(tiny), artefacts=artefacts)
    message = HumanMessage(TEXT)
    assert "First." in annotator.invoke([message])[0].content
    put_catalog(second, artefacts)
    eventually(lambda: "Second." in annotator.invoke([message])[0].content)
    assert not annotator.stats.bypassed
    assert annotator.stats.flagged == annotator.stats.inspected


def test_a_reading_under_way_ends_with_the_old_catalog(
    source: CatalogSource, artefacts: Path, second: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, release = hold(source.inspector.engine, monkeypatch)
    results: list[Reading] = []
    thread = threading.Thread(target=lambda: results.append(read(source)))
    thread.start()
    assert begun.wait(PATIENCE)
    put_catalog(second, artefacts)
    eventually(lambda: read(source, HELLO) and source.catalog and source.catalog.replaced == 1)
    release.set()
    thread.join(PATIENCE)
    assert note(results[0]) == "First."
    assert note(read(source)) == "Second."


def test_readings_under_constant_replacement_are_of_one_catalog_each(
    source: CatalogSource, artefacts: Path, tiny: Path, tmp_path: Path
) -> None:
    """The catalogs differ in dictionary, notes and weights: a mixture would be neither of the two readings."""
    second = make_artefacts(tmp_path / "second", tiny, note="Second.", sae_seed=1)
    first = shutil.copytree(artefacts, tmp_path / "first")
    expected = [
        facts(Inspector.from_model(str(tiny), artefacts=folder).inspect(MESSAGES)) for folder in (first, second)
    ]
    source.tokens = True
    done = threading.Event()
    found: list[dict[str, Any]] = []

    def client() -> None:
        while not done.is_set():
            found.append(facts(read(source)))

    clients = [threading.Thread(target=client) for _ in range(3)]
    for thread in clients:
        thread.start()
    for number in range(10):
        coming = shutil.copytree((second, first)[number % 2], tmp_path / "coming")
        replace_folder(coming, artefacts)
        state = source.catalog
        assert state is not None
        eventually(lambda state=state: source.catalog and source.catalog.replaced > state.replaced)
    done.set()
    for thread in clients:
        thread.join(PATIENCE)
    assert {expected.index(reading) for reading in found} == {0, 1}


def test_a_whole_folder_with_another_dictionary_takes_over(
    source: CatalogSource, artefacts: Path, tiny: Path, tmp_path: Path
) -> None:
    coming = make_artefacts(tmp_path / "coming", tiny, note="Second.", sae_seed=1)
    expected = facts(Inspector.from_model(str(tiny), artefacts=coming).inspect(MESSAGES, tokens=False))
    replace_folder(coming, artefacts)
    eventually(lambda: note(read(source)) == "Second.")
    assert facts(read(source)) == expected


def damaged(change: Callable[[bytearray], Any]) -> Callable[[Path, Path, Path], None]:
    """The second catalog, damaged."""

    def put(second: Path, artefacts: Path, tiny: Path) -> None:
        data = bytearray((second / CATALOG_FILE).read_bytes())
        change(data)
        put_bytes(bytes(data), artefacts)

    return put


def flip(data: bytearray) -> None:
    """One bit in a note: SQLite does not notice."""
    data[data.rindex(b"Second.")] ^= 1


def older(second: Path, artefacts: Path, tiny: Path) -> None:
    with closing(sqlite3.connect(second / CATALOG_FILE)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '0001'")
        connection.execute("PRAGMA user_version = 0")
    put_catalog(second, artefacts)


def made(**options: Any) -> Callable[[Path, Path, Path], None]:
    """A sound catalog of something else."""

    def put(second: Path, artefacts: Path, tiny: Path) -> None:
        put_catalog(make_artefacts(second / "other", tiny, **options), artefacts)

    return put


def with_its_dictionary(**options: Any) -> Callable[[Path, Path, Path], None]:
    """A sound folder of something else."""

    def put(second: Path, artefacts: Path, tiny: Path) -> None:
        replace_folder(make_artefacts(second / "other", tiny, **options), artefacts)

    return put


BAD: dict[str, tuple[Callable[[Path, Path, Path], Any], str]] = {
    "cut off": (damaged(lambda data: data.__delitem__(slice(len(data) // 2, None))), "CatalogError"),
    "empty": (damaged(bytearray.clear), "RevisionError"),
    "a flipped bit": (damaged(flip), "CatalogError: .*damaged"),
    "no database": (damaged(lambda data: data.__setitem__(slice(None), b"<html>" * 999)), "CatalogError"),
    "gone": (lambda second, artefacts, tiny: (artefacts / CATALOG_FILE).unlink(), "CatalogError: There is no catalog"),
    "an older schema": (older, "RevisionError: .*db upgrade"),
    "of another model": (made(weights="other"), "FingerprintError: .*weights differ"),
    "of another dictionary": (made(sae_seed=1), "FingerprintError: .*not the one that its catalog was built on"),
    "of another layer": (with_its_dictionary(layer=LAYER + 1), "FingerprintError: .*reads layer 2, but layer 1"),
}


@pytest.mark.parametrize(("put", "reason"), BAD.values(), ids=BAD)
def test_what_does_not_fit_is_refused_and_the_old_one_stays(
    source: CatalogSource, artefacts: Path, second: Path, tiny: Path, tmp_path: Path, put: Any, reason: str,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    first = shutil.copytree(artefacts, tmp_path / "kept")
    before = facts(read(source))
    put(second, artefacts, tiny)
    eventually(lambda: facts(read(source)) == before and source.catalog and source.catalog.refused)
    for _ in range(20):  # it is tried again and again, and told once
        assert facts(read(source)) == before
    source._pool.shutdown(wait=True)
    state = source.catalog
    assert state is not None
    assert (state.replaced, state.fingerprint) == (0, CatalogFile.of(first / CATALOG_FILE).fingerprint)
    (line,) = [record for record in caplog.records if record.name == "sensecheck"]
    assert line.levelno == logging.WARNING
    assert "the old one stays in service" in line.message
    assert state.refused is not None
    assert state.refused in line.message
    assert re.match(reason, state.refused)


@pytest.mark.parametrize("again", ["First.", "Second."])
def test_after_a_bad_one_a_good_one_takes_over(
    source: CatalogSource, artefacts: Path, second: Path, tmp_path: Path, again: str
) -> None:
    first = shutil.copytree(artefacts, tmp_path / "kept")
    put_bytes(b"no database", artefacts)
    eventually(lambda: read(source) and source.catalog and source.catalog.refused)
    put_catalog(second if again == "Second." else first, artefacts)
    eventually(lambda: note(read(source)) == again and source.catalog and not source.catalog.refused)
    assert source.catalog is not None
    assert source.catalog.replaced == (again == "Second.")


def test_a_catalog_that_another_process_holds_is_taken_when_it_is_free(
    source: CatalogSource, artefacts: Path, second: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody touches the file between the refusal and the end of the lock."""
    monkeypatch.setattr("sae_runtime.catalog.store.BUSY_TIMEOUT_MS", 10)
    with closing(sqlite3.connect(second / CATALOG_FILE, isolation_level=None)) as writer:
        writer.execute("BEGIN EXCLUSIVE")
        (second / CATALOG_FILE).replace(artefacts / CATALOG_FILE)
        eventually(lambda: note(read(source)) == "First." and source.catalog and source.catalog.refused)
        assert "locked" in str(source.catalog and source.catalog.refused)
    eventually(lambda: note(read(source)) == "Second.")


def test_the_same_content_is_not_opened_again(
    source: CatalogSource, artefacts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Inspector, "renewed", None)
    copy = shutil.copytree(artefacts, tmp_path / "copy")
    put_catalog(copy, artefacts)
    watch = source._watch
    assert watch is not None
    eventually(lambda: read(source) and watch.in_place)
    assert watch.state.replaced == 0
    assert watch.state.refused is None


def test_a_glossary_in_use_is_ready_when_the_new_catalog_takes_over(
    source: CatalogSource, artefacts: Path, second: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    glossary = Glossary.from_dict({"stone": {"meaning": "a precious gem", "otherwise": "a piece of rock"}})
    assert read(source, HELLO, glossary=glossary).mentions == []
    put_catalog(second, artefacts)
    eventually(lambda: read(source, HELLO) and source.catalog and source.catalog.replaced == 1)
    monkeypatch.setattr(source.inspector, "features", None)  # nothing is left to be computed
    assert [m.concept for m in read(source, HELLO, glossary=glossary).mentions] == []
    assert source.inspector.detector_for(glossary).view.concepts[0].slug == "bank"


def test_an_unpickled_source_watches_too(source: CatalogSource, artefacts: Path, second: Path) -> None:
    copy = pickle.loads(pickle.dumps(source))  # noqa: S301 (our own bytes)
    put_catalog(second, artefacts)
    eventually(lambda: note(read(copy)) == "Second.")


def test_the_file_is_looked_at_once_a_second_whatever_the_load(
    source: CatalogSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = source._watch
    assert watch is not None
    now, looks = 1e6, []
    monkeypatch.setattr(reload, "CHECK_SECONDS", 1.0)
    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(reload, "stamp_of", lambda path: looks.append(path) or watch._looked)
    for _ in range(5):
        assert not any(watch.changed() for _ in range(1000))
        now += 1.0
    assert len(looks) == 5
