"""Another process holds the catalog's file, or died while it wrote to it: those who serve do not mind, others are told."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults.killing import Surroundings, ends, hold, start, write_half
from faults.making import TEXT, eventually, make_artefacts
from langchain_core.messages import HumanMessage

from middleware import SAEAnnotator, ServerSource
from sae_runtime.catalog.store import seal_catalog, upgrade_catalog
from sae_runtime.catalog.view import CatalogView
from sae_runtime.errors import CatalogError
from sae_runtime.paths import CATALOG_FILE


@pytest.fixture
def catalog(artefacts: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("sae_runtime.catalog.store.BUSY_TIMEOUT_MS", 50)
    return artefacts / CATALOG_FILE


@pytest.fixture
def holder(catalog: Path) -> Iterator[int]:
    """Number of a process that holds the lock."""
    process = start(hold, str(catalog), around=Surroundings())
    eventually(Path(f"{catalog}.held").exists)
    assert process.pid
    yield process.pid
    process.kill()
    process.join()


def test_who_has_it_open_goes_on_and_who_opens_it_is_told(
    tiny: Path, catalog: Path, request: pytest.FixtureRequest
) -> None:
    annotator = SAEAnnotator.from_catalog(str(tiny), artefacts=catalog.parent)
    holder = request.getfixturevalue("holder")
    assert "First." in annotator.invoke([HumanMessage(TEXT)])[0].content
    assert not annotator.stats.bypassed
    for opening in (
        lambda: SAEAnnotator.from_catalog(str(tiny), artefacts=catalog.parent),
        lambda: ServerSource("http://127.0.0.1:1", artefacts=catalog.parent),
        lambda: upgrade_catalog(catalog),
        lambda: seal_catalog(catalog),
    ):
        with pytest.raises(CatalogError, match="locked") as caught:
            opening()
        assert "other program" in caught.value.remedy
    os.kill(holder, signal.SIGKILL)  # a lock does not outlive its process
    eventually(lambda: "First." in reopened(tiny, catalog))
    upgrade_catalog(catalog)


def reopened(tiny: Path, catalog: Path) -> str:
    try:
        return str(
            SAEAnnotator.from_catalog(str(tiny), artefacts=catalog.parent).invoke([HumanMessage(TEXT)])[0].content
        )
    except CatalogError:
        return ""


def test_a_writer_that_died_halfway_leaves_nothing(tiny: Path, tmp_path: Path) -> None:
    """Half of its changes are in the file: it is refused until it is brought back to what it was."""
    catalog = make_artefacts(tmp_path / "made", tiny) / CATALOG_FILE
    whole, view = catalog.read_bytes(), CatalogView.load(catalog)
    assert ends(write_half, str(catalog), around=Surroundings()) == -signal.SIGKILL
    assert b"half-written" in catalog.read_bytes()
    with pytest.raises(CatalogError) as caught:
        CatalogView.load(catalog)
    assert f"sensecheck db upgrade {catalog}" in caught.value.remedy
    upgrade_catalog(catalog)
    assert CatalogView.load(catalog) == view
    assert b"half-written" not in catalog.read_bytes()
    assert len(catalog.read_bytes()) == len(whole)
    assert [path.name for path in catalog.parent.glob("catalog*")] == [CATALOG_FILE]
