"""The same in the server: its routes go on, its health says which catalog reads, and its SAE never changes."""

from __future__ import annotations

import asyncio
import re
import shutil
import sqlite3
import threading
import uuid
from argparse import Namespace
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi.testclient import TestClient
from faults.making import LAYER, MESSAGES, PATIENCE, eventually, make_artefacts, put_bytes, put_catalog
from faults.serving import CONTEXT, Worker, app_of

from sae_runtime.build.folders import replace_folder
from sae_runtime.catalog.file import CatalogFile
from sae_runtime.catalog.view import CatalogView
from sae_runtime.detector import Detector
from sae_runtime.engines.chat import ChatEncoder
from sae_runtime.engines.features import encode_prompt
from sae_runtime.engines.transformers import TransformersEngine
from sae_runtime.errors import FingerprintError
from sae_runtime.glossary import Glossary
from sae_runtime.paths import CATALOG_FILE
from sae_runtime.sae import load_sae
from sae_runtime.sae.fingerprint import fingerprint_sae
from sae_runtime.serving import plugin
from sae_runtime.serving.plugin import SensecheckEndpoint
from sae_runtime.serving.service import ReadingService


@pytest.fixture
def environment(tiny: Path, artefacts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ``sensecheck serve`` tells the plugin; the catalog is looked at as often as can be."""
    monkeypatch.setenv("SENSECHECK_SERVE_MODEL", str(tiny))
    monkeypatch.setenv("SENSECHECK_SERVE_ARTEFACTS", str(artefacts))
    monkeypatch.setattr(plugin, "CHECK_SECONDS", 0.005)


@pytest.fixture(params=["vllm", "transformers"])
def engine(
    request: pytest.FixtureRequest, tiny: Path, artefacts: Path, environment: None, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Any]:
    """What prompts are read with: something like vLLM's worker, or transformers in the server's process."""
    if request.param == "transformers":
        yield SimpleNamespace(model_config=SimpleNamespace(max_model_len=CONTEXT))
        return
    channel = uuid.uuid4().hex
    monkeypatch.setenv("SENSECHECK_SERVE_CHANNEL", channel)
    monkeypatch.setenv("SENSECHECK_SERVE_SAE", fingerprint_sae(artefacts))
    worker = Worker(tiny, artefacts, channel)
    yield worker
    worker.close()


@pytest.fixture
def client(engine: Any, eager: None) -> Iterator[TestClient]:
    with TestClient(app_of(SensecheckEndpoint(), engine)) as client:
        yield client


@pytest.fixture
def second(tiny: Path, tmp_path: Path) -> Path:
    """Artefacts with the same dictionary, another note, and one feature less in the catalog."""
    return make_artefacts(tmp_path / "second", tiny, note="Second.", features=7)


def note(client: TestClient, **options: Any) -> str:
    reading = client.post("/v1/sae/inspect", json={"messages": MESSAGES, "tokens": False, **options})
    assert reading.status_code == 200, reading.text
    (misread,) = reading.json()["misreads"]
    return misread["note"]


def health(client: TestClient) -> Any:
    return client.get("/v1/sae/health").json()


def feature(client: TestClient, index: int) -> int:
    return client.get(f"/v1/sae/features/{index}").status_code


def test_the_server_reads_with_the_new_catalog(client: TestClient, artefacts: Path, second: Path) -> None:
    assert note(client) == "First."
    assert feature(client, 7) == 200
    before = health(client)
    put_catalog(second, artefacts)
    eventually(lambda: health(client)["catalog"]["replaced"] == 1)  # without a request that reads
    assert note(client) == "Second."
    assert feature(client, 7) == 404
    after = health(client)
    found = CatalogFile.of(artefacts / CATALOG_FILE).fingerprint
    assert after["catalog"] == {"fingerprint": found, "replaced": 1, "refused": None}
    assert before["catalog"]["fingerprint"] != found
    assert after["fingerprints"] == before["fingerprints"]


def put_other_dictionary(second: Path, artefacts: Path, tiny: Path) -> None:
    replace_folder(make_artefacts(second / "other", tiny, note="Other.", sae_seed=1), artefacts)


def put_damaged(second: Path, artefacts: Path, tiny: Path) -> None:
    put_bytes((second / CATALOG_FILE).read_bytes()[:-4096], artefacts)


@pytest.mark.parametrize(
    ("put", "reason"),
    [(put_other_dictionary, "FingerprintError: .*belongs to the SAE .*Restart"), (put_damaged, "damaged")],
    ids=["another dictionary", "damaged"],
)
def test_what_does_not_fit_is_refused_and_visible(
    client: TestClient, artefacts: Path, second: Path, tiny: Path, tmp_path: Path, put: Any, reason: str
) -> None:
    first = shutil.copytree(artefacts, tmp_path / "kept")
    before = health(client)
    put(second, artefacts, tiny)
    eventually(lambda: health(client)["catalog"]["refused"])
    assert note(client) == "First."
    after = health(client)
    assert after["status"] == "ok"
    assert (after["fingerprints"], after["catalog"]["replaced"]) == (before["fingerprints"], 0)
    assert re.search(reason, after["catalog"]["refused"])
    assert feature(client, 0) == 503  # a feature of another dictionary would be a wrong answer
    replace_folder(first, artefacts)
    eventually(lambda: health(client)["catalog"]["refused"] is None)
    assert feature(client, 0) == 200
    assert note(client) == "First."


@pytest.mark.parametrize("engine", ["vllm"], indirect=True)  # the other one: test_catalog_replaced.py
def test_a_reading_under_way_ends_with_the_old_catalog(
    tiny: Path, artefacts: Path, second: Path, engine: Worker, eager: None
) -> None:
    with TestClient(app_of(SensecheckEndpoint(), engine)) as client:
        engine.release.clear()
        results: list[str] = []
        thread = threading.Thread(target=lambda: results.append(note(client)))
        thread.start()
        assert engine.begun.wait(PATIENCE)
        put_catalog(second, artefacts)
        eventually(lambda: health(client)["catalog"]["replaced"] == 1)
        engine.release.set()
        thread.join(PATIENCE)
        assert results == ["First."]
        assert note(client) == "Second."


def test_a_glossary_in_use_is_compiled_before_the_new_catalog_takes_over(
    client: TestClient, artefacts: Path, second: Path
) -> None:
    glossary = {"terms": [{"term": "sat", "meaning": "took an exam", "otherwise": ["rested on a chair"]}]}
    assert note(client, glossary=glossary, only=["bank"]) == "First."
    put_catalog(second, artefacts)
    eventually(lambda: health(client)["catalog"]["replaced"] == 1)
    assert health(client)["counters"]["glossaries"] == 2
    assert note(client, glossary=glossary, only=["bank"]) == "Second."
    assert health(client)["counters"]["glossaries"] == 2


async def test_a_plan_is_judged_by_the_detector_that_made_it(tiny: Path, artefacts: Path, second: Path) -> None:
    """What a one-call chat completion does, whose reading comes later than its plan."""
    encoder = ChatEncoder(tiny)
    old, new = (Detector(CatalogView.load(folder / CATALOG_FILE), encoder, CONTEXT) for folder in (artefacts, second))
    service = ReadingService(old, SimpleNamespace())  # type: ignore[arg-type]
    detector = service.detector
    plan = await service.plan(detector, MESSAGES, tokens=False)
    (residual,) = TransformersEngine(tiny, LAYER).residual([plan.chat.token_ids])
    features = encode_prompt(load_sae(artefacts), residual, plan.latents)
    await service.use(new)
    assert service.detector is new
    assert [misread.note for misread in (await service.judge(detector, plan, features)).misreads] == ["First."]


async def test_a_glossary_compiled_for_the_old_catalog_is_not_used_with_the_new_one(
    tiny: Path, artefacts: Path, second: Path
) -> None:
    """Its compilation is under way when the catalogs change."""
    encoder, engine, sae = ChatEncoder(tiny), TransformersEngine(tiny, LAYER), load_sae(artefacts)
    old, new = (Detector(CatalogView.load(folder / CATALOG_FILE), encoder, CONTEXT) for folder in (artefacts, second))
    begun, release = asyncio.Event(), asyncio.Event()

    async def features(plan: Any) -> Any:
        begun.set()
        await release.wait()
        return encode_prompt(sae, engine.residual([plan.chat.token_ids])[0], plan.latents)

    service = ReadingService(old, SimpleNamespace(features=features))  # type: ignore[arg-type]
    glossary = Glossary.from_dict({"sat": {"meaning": "took an exam", "otherwise": "rested on a chair"}})
    under_way = asyncio.create_task(service.inspect(MESSAGES, glossary=glossary, only={"bank"}, tokens=False))
    await begun.wait()
    await service.use(new)
    release.set()
    assert [misread.note for misread in (await under_way).misreads] == ["First."]
    reading = await service.inspect(MESSAGES, glossary=glossary, only={"bank"}, tokens=False)
    assert [misread.note for misread in reading.misreads] == ["Second."]


async def test_a_new_catalog_does_not_wait_for_an_engine_that_hangs(
    tiny: Path, artefacts: Path, second: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A glossary in use cannot be compiled for it, since nothing is read any more; the catalog takes over all the same."""
    monkeypatch.setattr("sae_runtime.serving.service.COMPILE_SECONDS", 0.2)
    encoder, engine, sae = ChatEncoder(tiny), TransformersEngine(tiny, LAYER), load_sae(artefacts)
    old, new = (Detector(CatalogView.load(folder / CATALOG_FILE), encoder, CONTEXT) for folder in (artefacts, second))
    hangs = asyncio.Event()

    async def features(plan: Any) -> Any:
        if hangs.is_set():
            await asyncio.sleep(PATIENCE)
        return encode_prompt(sae, engine.residual([plan.chat.token_ids])[0], plan.latents)

    service = ReadingService(old, SimpleNamespace(features=features))  # type: ignore[arg-type]
    glossary = Glossary.from_dict({"sat": {"meaning": "took an exam", "otherwise": "rested on a chair"}})
    await service.inspect(MESSAGES, glossary=glossary, only={"bank"}, tokens=False)
    hangs.set()
    await asyncio.wait_for(service.use(new), PATIENCE / 2)
    hangs.clear()
    reading = await service.inspect(MESSAGES, glossary=glossary, only={"bank"}, tokens=False)
    assert [misread.note for misread in reading.misreads] == ["Second."]


@pytest.mark.usefixtures("environment")
async def test_artefacts_that_were_replaced_while_the_server_started_are_refused(
    tiny: Path, artefacts: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The worker has loaded the old SAE by then; nothing would show that its features mean something else."""
    monkeypatch.setenv("SENSECHECK_SERVE_CHANNEL", uuid.uuid4().hex)
    monkeypatch.setenv("SENSECHECK_SERVE_SAE", fingerprint_sae(artefacts))
    replace_folder(make_artefacts(tmp_path / "other", tiny, sae_seed=1), artefacts)
    engine = SimpleNamespace(model_config=SimpleNamespace(max_model_len=CONTEXT))
    with pytest.raises(FingerprintError, match="replaced while the server was starting"):
        await SensecheckEndpoint().init_state(engine, SimpleNamespace(), Namespace())  # type: ignore[arg-type]


def test_a_catalog_that_another_process_holds_delays_its_page_alone(
    client: TestClient, artefacts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Readings ask no database; a feature's page says when to come back."""
    monkeypatch.setattr("sae_runtime.catalog.store.BUSY_TIMEOUT_MS", 10)
    with closing(sqlite3.connect(artefacts / CATALOG_FILE, isolation_level=None)) as writer:
        writer.execute("BEGIN EXCLUSIVE")
        assert note(client) == "First."
        page = client.get("/v1/sae/features/0")
        assert (page.status_code, page.headers["retry-after"]) == (503, "1")
        assert "locked" in page.json()["error"]["message"]
    assert feature(client, 0) == 200
