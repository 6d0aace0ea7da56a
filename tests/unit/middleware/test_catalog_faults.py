"""A catalog that is gone, locked, or not the server's, and readings in this process that fail: the chain answers, or is told."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from asking import NOTED, TEXT, annotated_by, heals, passes
from faulty_server import FINGERPRINTS, PATIENCE, FaultyServer
from langchain_core.messages import HumanMessage
from sqlalchemy.orm import Session

from middleware import CatalogSource, InspectionRequest, ServerSource, Stats
from sae_runtime.catalog.store import create_catalog, seal_catalog
from sae_runtime.catalog.tables import (
    ConceptRow,
    CueRow,
    FeatureRow,
    ModelRow,
    NoteRow,
    SaeRow,
    SenseRow,
    SignatureRow,
    SignatureWeightRow,
)
from sae_runtime.catalog.view import CatalogView
from sae_runtime.detector import Detector, Inspector
from sae_runtime.engines.chat import EncodedChat, TokenSpan
from sae_runtime.errors import CatalogError, ServerError
from sae_runtime.paths import CATALOG_FILE
from sae_runtime.sae import JumpReLUSAE

Call = Callable[..., Any]


def sense_row(slug: str, feature: FeatureRow, weight: float, cue: str) -> SenseRow:
    return SenseRow(
        slug=slug, gloss=f"the {slug}", domains=[slug], contexts=[], notes=[NoteRow(text="A note.")],
        signature=SignatureRow(bias=0.0, weights=[SignatureWeightRow(feature_id=feature.id, weight=weight)]),
        cues=[CueRow(stem=cue, weight=9.0)],
    )  # fmt: skip


@pytest.fixture
def catalog(tmp_path: Path) -> Path:
    """A catalog whose one concept is always read as money, and meant as a river where someone sat."""
    path = tmp_path / CATALOG_FILE
    engine = create_catalog(path)
    with Session(engine) as session, session.begin():
        model = {name: value for name, value in FINGERPRINTS.items() if name != "sae"}
        sae = SaeRow(
            model=ModelRow(name="tiny", **model), layer=0, hook_name="h", architecture="jumprelu", d_in=2, d_sae=2,
            fingerprint=FINGERPRINTS["sae"],
        )  # fmt: skip
        session.add(sae)
        session.flush()
        features = [
            FeatureRow(sae_id=sae.id, index=n, label=f"f{n}", density=0.1, max_activation=9.0) for n in range(2)
        ]
        session.add_all(features)
        session.flush()
        senses = [sense_row("money", features[0], 5.0, "loan"), sense_row("river", features[1], 5.0, "sat")]
        session.add(
            ConceptRow(slug="bank", pack="test", forms=["bank"], site="rest", accuracy=1.0, read_below=0.4,
                       intended_above=0.7, senses=senses)
        )  # fmt: skip
    engine.dispose()
    seal_catalog(path)  # as published ones are
    return path


@pytest.mark.parametrize(
    "wrong",
    [FINGERPRINTS | {"sae": "other"}, {name: value for name, value in FINGERPRINTS.items() if name != "weights"}, {}],
    ids=["other-sae", "no-weights", "none"],
)
def test_the_chain_answers_when_the_server_has_other_artefacts(
    server: FaultyServer, catalog: Path, call: Call, wrong: dict[str, str]
) -> None:
    with contextlib.closing(ServerSource(server.url, artefacts=catalog.parent)) as source:
        server.health = {"status": "ok", "fingerprints": wrong}
        passes(call, annotated_by(source), "FingerprintError")
        assert server.asked == []  # a server of another model is shown no prompt
        server.health = {"status": "ok", "fingerprints": FINGERPRINTS}
        heals(call, source)


@pytest.mark.parametrize(
    "health", [{"status": "starting"}, {"fingerprints": None}, {"fingerprints": ["w"]}, {"fingerprints": "w"}, [1], None],
    ids=str,
)  # fmt: skip
def test_the_chain_answers_when_the_server_does_not_say_what_it_reads_with(
    server: FaultyServer, catalog: Path, call: Call, health: Any
) -> None:
    with contextlib.closing(ServerSource(server.url, artefacts=catalog.parent)) as source:
        server.health = health
        passes(call, annotated_by(source), "ServerError")
        assert server.asked == []


@pytest.mark.usefixtures("long_pauses")
def test_a_server_that_is_not_healthy_yet_is_asked_again(server: FaultyServer, catalog: Path, call: Call) -> None:
    server.health_statuses = [503]
    with contextlib.closing(ServerSource(server.url, artefacts=catalog.parent)) as source:
        heals(call, source)
    assert server.asked == [TEXT]


def test_a_key_that_is_refused_by_the_health_route_is_told(server: FaultyServer, catalog: Path, call: Call) -> None:
    server.health_statuses = [401]
    request = InspectionRequest([{"role": "user", "content": TEXT}], [0])
    source = ServerSource(server.url, artefacts=catalog.parent)
    with contextlib.closing(source), pytest.raises(ServerError, match="answered 401"):
        call(source, "inspect", request, deadline=PATIENCE)


class LetterEncoder:
    """A token per word, template text before and after."""

    def encode(self, messages: Any, *, limit: int) -> EncodedChat:
        spans = [TokenSpan("<user>", None, 0, 0)]
        for number, message in enumerate(messages):
            start = 0
            for word in message["content"].split(" "):
                spans.append(TokenSpan(word, number, start, start + len(word)))
                start += len(word) + 1
        return EncodedChat(list(range(len(spans))), spans, False)


def inspector_of(view: CatalogView) -> Inspector:
    """An inspector that finds latent 0 alone in every token."""
    sae = JumpReLUSAE(
        {"W_enc": torch.eye(2), "W_dec": torch.eye(2), "b_enc": torch.zeros(2), "b_dec": torch.zeros(2),
         "threshold": torch.full((2,), 0.1)}
    )  # fmt: skip
    engine = SimpleNamespace(residual=lambda rows: [torch.tensor([[1.0, -1.0]]).repeat(len(row), 1) for row in rows])
    return Inspector(Detector(view, LetterEncoder(), 512), sae, engine)  # type: ignore[arg-type]


@contextlib.contextmanager
def locked(catalog: Path) -> Iterator[None]:
    """Another program is writing the catalog."""
    with contextlib.closing(sqlite3.connect(catalog, isolation_level=None)) as writer:
        writer.execute("BEGIN EXCLUSIVE")
        yield


def test_a_closed_event_loop_does_not_spoil_readings_in_this_process(catalog: Path) -> None:
    inspector = inspector_of(CatalogView.load(catalog))
    annotator = annotated_by(CatalogSource(inspector))
    for _ in range(3):
        assert asyncio.run(annotator.ainvoke(TEXT)) == [HumanMessage(NOTED)]
    assert annotator.stats == Stats(inspected=3, flagged=3)


def test_a_missing_catalog_is_told_when_it_is_opened(tmp_path: Path) -> None:
    for opening in (CatalogView.load, lambda path: ServerSource("http://127.0.0.1:1", artefacts=path.parent)):
        with pytest.raises(CatalogError, match="no catalog") as caught:
            opening(tmp_path / CATALOG_FILE)
        assert str(tmp_path) in caught.value.message
        assert caught.value.remedy


def test_a_locked_catalog_is_told_when_it_is_opened(catalog: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sae_runtime.catalog.store.BUSY_TIMEOUT_MS", 10)
    with locked(catalog), pytest.raises(CatalogError, match="locked") as caught:
        ServerSource("http://127.0.0.1:1", artefacts=catalog.parent)
    assert "close the other program" in caught.value.remedy
    assert CatalogView.load(catalog).concepts  # free again


def test_an_open_source_does_not_mind_what_becomes_of_its_catalog(catalog: Path, call: Call) -> None:
    source = CatalogSource(inspector_of(CatalogView.load(catalog)))
    heals(call, source)
    with locked(catalog):
        heals(call, source)
    catalog.unlink()
    heals(call, source)


@pytest.mark.parametrize("error", [CatalogError("The catalog is locked."), MemoryError(), OSError("Gone.")], ids=repr)
def test_the_chain_answers_when_reading_in_this_process_fails(
    catalog: Path, call: Call, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    inspector = inspector_of(CatalogView.load(catalog))
    source = CatalogSource(inspector)

    def broken(rows: Any) -> Any:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(inspector.engine, "residual", broken)
        passes(call, annotated_by(source), type(error).__name__)
    heals(call, source)
