"""The inspection routes on a bare FastAPI app, with an inspector set by hand."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from sae_runtime.detector import FeatureActivation, Inspector, MentionReading, Reading, TokenReading
from sae_runtime.errors import EngineError, InputError, SensecheckError
from sae_runtime.models import ModelFingerprint
from sae_runtime.serving.plugin import (
    MAX_CHARACTERS,
    MAX_CONCURRENT,
    MAX_MESSAGES,
    InspectMessage,
    InspectRequest,
    SensecheckEndpoint,
)

PATIENCE = 30.0  # seconds; only a broken product waits that long
TEXT = "I sat on the bänk 🏞️."
USER = {"role": "user", "content": TEXT}


class ScriptedInspector:
    """Stands in for an Inspector.

    Attributes:
        calls: messages, domain and read of every reading.
        error: raised instead of an answer.
        barrier: when set, readings wait until as many are under way as it asks for.
    """

    def __init__(self, reading: Reading) -> None:
        self.reading = reading
        self.calls: list[tuple[Any, str | None, list[int] | None]] = []
        self.error: Exception | None = None
        self.barrier: threading.Barrier | None = None
        fingerprint = ModelFingerprint(weights="w", config="c", tokenizer="t", chat_template="ct")
        self.view = SimpleNamespace(
            model_name="tiny", layer=3, model=fingerprint, sae_fingerprint="s", concepts=(object(), object())
        )

    def inspect(self, messages: Any, *, domain: str | None, read: list[int] | None) -> Reading:
        self.calls.append((messages, domain, read))
        if self.barrier:
            self.barrier.wait()
        if self.error:
            raise self.error
        return self.reading


@pytest.fixture
def inspector(misread_at: Any, reading_of: Any) -> ScriptedInspector:
    feature = FeatureActivation(index=7, label="rivers", activation=1.5)
    place = {"message": 0, "start": 13, "end": 17}
    mention = MentionReading(concept="bank", text="bänk", **place, reading={"usual": 0.9}, intended={"other": 0.95})
    tokens = [TokenReading(text="bänk", **place, features=[feature]),
              TokenReading(text="<s>", message=None, start=0, end=0, features=[])]  # fmt: skip
    reading = reading_of([misread_at(TEXT, 13, 17, note="A note.")])
    return ScriptedInspector(reading.model_copy(update={"mentions": [mention], "tokens": tokens}))


@pytest.fixture
def endpoint() -> SensecheckEndpoint:
    return SensecheckEndpoint()


@pytest.fixture
def starting(endpoint: SensecheckEndpoint) -> Iterator[TestClient]:
    """A client of a server whose inspector is not open yet."""
    app = FastAPI()
    endpoint.attach_router(app)
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def client(starting: TestClient, endpoint: SensecheckEndpoint, inspector: ScriptedInspector) -> TestClient:
    endpoint._inspector = inspector  # type: ignore[assignment]
    return starting


def test_a_reading_comes_back_whole(client: TestClient, inspector: ScriptedInspector) -> None:
    response = client.post("/v1/sae/inspect", json={"messages": [USER], "domain": "rivers", "read": [0]})
    assert response.status_code == 200
    assert Reading.model_validate(response.json()) == inspector.reading
    assert response.json() == inspector.reading.model_dump(mode="json")
    assert inspector.calls == [([USER], "rivers", [0])]


def test_domain_and_read_may_be_left_out(client: TestClient, inspector: ScriptedInspector) -> None:
    assert client.post("/v1/sae/inspect", json={"messages": [USER]}).status_code == 200
    assert inspector.calls == [([USER], None, None)]


def test_read_may_name_no_message(client: TestClient, inspector: ScriptedInspector) -> None:
    assert client.post("/v1/sae/inspect", json={"messages": [USER], "read": []}).status_code == 200
    assert inspector.calls == [([USER], None, [])]


@pytest.mark.parametrize("read", [[1], [-1], [0, 1], [10**9]])
def test_read_that_names_no_message_is_refused(
    client: TestClient, inspector: ScriptedInspector, read: list[int]
) -> None:
    response = client.post("/v1/sae/inspect", json={"messages": [USER], "read": read})
    assert response.status_code == 422
    assert response.json()["error"] == {
        "message": "`read` names a message that does not exist.", "type": "sensecheck", "code": 422
    }  # fmt: skip
    assert inspector.calls == []


@pytest.mark.parametrize(
    "body",
    [
        pytest.param({}, id="no-messages"),
        pytest.param({"messages": []}, id="empty-messages"),
        pytest.param({"messages": [USER] * (MAX_MESSAGES + 1)}, id="too-many-messages"),
        pytest.param({"messages": [{"role": "user", "content": "x" * (MAX_CHARACTERS + 1)}]}, id="too-long"),
        pytest.param({"messages": [{"role": "r" * 33, "content": "x"}]}, id="long-role"),
        pytest.param({"messages": [{"role": "user"}]}, id="no-content"),
        pytest.param({"messages": [{"content": "x"}]}, id="no-role"),
        pytest.param({"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]}, id="blocks"),
        pytest.param({"messages": [USER], "domain": "d" * 65}, id="long-domain"),
        pytest.param({"messages": [USER], "read": "all"}, id="read-str"),
        pytest.param({"messages": [USER], "read": [None]}, id="read-none"),
        pytest.param([USER], id="list"),
    ],
)
def test_malformed_requests_are_refused(client: TestClient, inspector: ScriptedInspector, body: Any) -> None:
    assert client.post("/v1/sae/inspect", json=body).status_code == 422
    assert inspector.calls == []


def test_what_is_no_json_is_refused(client: TestClient, inspector: ScriptedInspector) -> None:
    headers = {"Content-Type": "application/json"}
    assert client.post("/v1/sae/inspect", content=b"{", headers=headers).status_code == 422
    assert inspector.calls == []


@pytest.mark.parametrize(
    "messages",
    [[{"role": "user", "content": "x" * MAX_CHARACTERS}], [{"role": "r" * 32, "content": ""}] * MAX_MESSAGES],
    ids=["characters", "messages"],
)
def test_the_limits_themselves_are_allowed(client: TestClient, inspector: ScriptedInspector, messages: Any) -> None:
    assert client.post("/v1/sae/inspect", json={"messages": messages, "domain": "d" * 64}).status_code == 200
    assert inspector.calls == [(messages, "d" * 64, None)]


def test_an_input_error_is_the_clients(client: TestClient, inspector: ScriptedInspector) -> None:
    inspector.error = InputError("The prompt is empty.", "Write something.")
    response = client.post("/v1/sae/inspect", json={"messages": [USER]})
    assert response.status_code == 422
    assert response.json()["error"]["message"] == "The prompt is empty. Write something."


@pytest.mark.parametrize(
    "error", [EngineError("Broken.", "Mend it."), SensecheckError("Broken.", "Mend it.")], ids=repr
)
def test_any_other_error_of_ours_is_the_servers_and_logged(
    client: TestClient, inspector: ScriptedInspector, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    inspector.error = error
    with caplog.at_level(logging.ERROR, logger="sensecheck"):
        response = client.post("/v1/sae/inspect", json={"messages": [USER]})
    assert response.status_code == 500
    assert response.json()["error"] == {"message": "Broken. Mend it.", "type": "sensecheck", "code": 500}
    assert [(record.name, record.levelname) for record in caplog.records] == [("sensecheck", "ERROR")]


def test_a_foreign_error_tells_the_client_nothing(client: TestClient, inspector: ScriptedInspector) -> None:
    inspector.error = RuntimeError("/home/secret")
    response = client.post("/v1/sae/inspect", json={"messages": [USER]})
    assert response.status_code == 500
    assert "secret" not in response.text


def test_an_error_frees_its_slot(client: TestClient, inspector: ScriptedInspector) -> None:
    inspector.error = EngineError("Broken.")
    for _ in range(MAX_CONCURRENT + 1):
        assert client.post("/v1/sae/inspect", json={"messages": [USER]}).status_code == 500
    inspector.error = None
    assert client.post("/v1/sae/inspect", json={"messages": [USER]}).status_code == 200


def test_before_the_start_there_is_no_reading(starting: TestClient) -> None:
    response = starting.post("/v1/sae/inspect", json={"messages": [USER]})
    assert response.status_code == 503
    assert response.json()["error"]["message"] == "The inspector is not ready."
    assert starting.get("/v1/sae/health").json() == {"status": "starting"}


def test_health_names_the_artefacts(client: TestClient) -> None:
    response = client.get("/v1/sae/health")
    assert response.status_code == 200
    fingerprints = {"weights": "w", "config": "c", "tokenizer": "t", "chat_template": "ct", "sae": "s"}
    assert response.json() == {"status": "ok", "model": "tiny", "layer": 3, "fingerprints": fingerprints, "concepts": 2}


async def test_readings_run_beside_the_event_loop_and_each_other(
    endpoint: SensecheckEndpoint, inspector: ScriptedInspector
) -> None:
    endpoint._inspector = inspector  # type: ignore[assignment]
    inspector.barrier = threading.Barrier(MAX_CONCURRENT, timeout=PATIENCE)  # passes only if so many run side by side
    request = InspectRequest(messages=[InspectMessage(**USER)])
    answers = await asyncio.gather(*[endpoint._inspect(request) for _ in range(3 * MAX_CONCURRENT)])
    assert answers == [inspector.reading] * 3 * MAX_CONCURRENT


async def test_no_more_readings_run_at_once_than_allowed(
    endpoint: SensecheckEndpoint, inspector: ScriptedInspector
) -> None:
    endpoint._inspector = inspector  # type: ignore[assignment]
    inspector.barrier = threading.Barrier(MAX_CONCURRENT + 1, timeout=0.2)  # one more than there may be: breaks
    request = InspectRequest(messages=[InspectMessage(**USER)])
    readings = [endpoint._inspect(request) for _ in range(MAX_CONCURRENT + 1)]
    answers = await asyncio.gather(*readings, return_exceptions=True)
    assert [type(answer) for answer in answers] == [threading.BrokenBarrierError] * (MAX_CONCURRENT + 1)


async def test_the_start_opens_what_serve_named(
    endpoint: SensecheckEndpoint, inspector: ScriptedInspector, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Any] = []
    monkeypatch.setattr(Inspector, "from_model", lambda *args, **options: opened.append((args, options)) or inspector)
    monkeypatch.setenv("SENSECHECK_SERVE_MODEL", "/models/tiny")
    monkeypatch.setenv("SENSECHECK_SERVE_ARTEFACTS", "/artefacts/tiny")
    await endpoint.init_state(None, None, None)  # type: ignore[arg-type]
    assert opened == [(("/models/tiny",), {"artefacts": Path("/artefacts/tiny"), "fetch": False})]
    assert endpoint._health()["status"] == "ok"
