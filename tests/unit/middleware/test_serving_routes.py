"""The inspection routes on a bare FastAPI app, with a reading service set by hand."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from sae_runtime.detector import FeatureActivation, MentionReading, Reading, TokenReading
from sae_runtime.errors import EngineError, InputError, SensecheckError
from sae_runtime.models import ModelFingerprint
from sae_runtime.serving.limits import MAX_BODY, MAX_CHARACTERS, MAX_MESSAGES
from sae_runtime.serving.plugin import SensecheckEndpoint
from sae_runtime.serving.service import BusyError

TEXT = "I sat on the bänk 🏞️."
USER = {"role": "user", "content": TEXT}


class ScriptedService:
    """Stands in for a ReadingService.

    Attributes:
        calls: messages, domain, read and tokens of every reading.
        error: raised instead of an answer.
    """

    def __init__(self, reading: Reading) -> None:
        self.reading = reading
        self.calls: list[tuple[Any, str | None, list[int] | None, bool]] = []
        self.error: Exception | None = None
        self.counters = {"inspected": 3}
        self.reader = None
        fingerprint = ModelFingerprint(weights="w", config="c", tokenizer="t", chat_template="ct")
        view = SimpleNamespace(
            model_name="tiny",
            layer=3,
            model=fingerprint,
            fingerprints={**fingerprint.model_dump(), "sae": "s"},
            concepts=(object(), object()),
        )
        self.detector = SimpleNamespace(view=view)
        self.scopes: list[dict[str, Any]] = []

    async def inspect(
        self, messages: Any, *, domain: str | None, read: list[int] | None, tokens: bool, **scope: Any
    ) -> Reading:
        self.calls.append((messages, domain, read, tokens))
        self.scopes.append(scope)
        if self.error:
            raise self.error
        return self.reading


@pytest.fixture
def service(misread_at: Any, reading_of: Any) -> ScriptedService:
    feature = FeatureActivation(index=7, label="rivers", activation=1.5)
    place = {"message": 0, "start": 13, "end": 17}
    mention = MentionReading(concept="bank", text="bänk", **place, reading={"usual": 0.9}, intended={"other": 0.95})
    tokens = [TokenReading(text="bänk", **place, features=[feature]),
              TokenReading(text="<s>", message=None, start=0, end=0, features=[])]  # fmt: skip
    reading = reading_of([misread_at(TEXT, 13, 17, note="A note.")])
    return ScriptedService(reading.model_copy(update={"mentions": [mention], "tokens": tokens}))


@pytest.fixture
def endpoint() -> SensecheckEndpoint:
    return SensecheckEndpoint()


@pytest.fixture
def starting(endpoint: SensecheckEndpoint) -> Iterator[TestClient]:
    """A client of a server whose inspector is not open yet."""
    app = FastAPI()
    endpoint.attach_reading_routes(app)
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def client(starting: TestClient, endpoint: SensecheckEndpoint, service: ScriptedService) -> TestClient:
    endpoint.service = service  # type: ignore[assignment]
    return starting


def test_a_reading_comes_back_whole(client: TestClient, service: ScriptedService) -> None:
    response = client.post("/v1/sae/inspect", json={"messages": [USER], "domain": "rivers", "read": [0]})
    assert response.status_code == 200
    assert Reading.model_validate(response.json()) == service.reading
    noted = TEXT + "\n\n[Note on the wording above: A note.]"
    start = noted.index("A note.")
    assert response.json() == {
        **service.reading.model_dump(mode="json"),
        "annotated_messages": [{"role": "user", "content": noted}],
        "places": [{"note": "A note.", "message": 0, "start": start, "end": start + len("A note.")}],
        "notes_left_out": 0,
    }
    assert service.calls == [([USER], "rivers", [0], True)]


def test_tokens_may_be_left_out(client: TestClient, service: ScriptedService) -> None:
    assert client.post("/v1/sae/inspect", json={"messages": [USER], "tokens": False}).status_code == 200
    assert service.calls == [([USER], None, None, False)]


def test_domain_and_read_may_be_left_out(client: TestClient, service: ScriptedService) -> None:
    assert client.post("/v1/sae/inspect", json={"messages": [USER]}).status_code == 200
    assert service.calls == [([USER], None, None, True)]


def test_read_may_name_no_message(client: TestClient, service: ScriptedService) -> None:
    assert client.post("/v1/sae/inspect", json={"messages": [USER], "read": []}).status_code == 200
    assert service.calls == [([USER], None, [], True)]


@pytest.mark.parametrize("read", [[1], [-1], [0, 1], [10**9]])
def test_read_that_names_no_message_is_refused(client: TestClient, service: ScriptedService, read: list[int]) -> None:
    response = client.post("/v1/sae/inspect", json={"messages": [USER], "read": read})
    assert response.status_code == 422
    assert response.json()["error"] == {
        "message": "`read` names a message that does not exist.", "type": "sensecheck", "code": 422
    }  # fmt: skip
    assert service.calls == []


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
        pytest.param({"messages": [USER], "read": [0] * (MAX_MESSAGES + 1)}, id="read-without-end"),
        pytest.param({"messages": [USER], "only": ["s" * 129]}, id="long-slug-only"),
        pytest.param({"messages": [USER], "without": ["s" * 129]}, id="long-slug-without"),
        pytest.param({"messages": [USER], "without": ["s"] * 1001}, id="many-slugs"),
        pytest.param({"messages": [USER], "picks": {"s" * 129: "x"}}, id="long-slug-picks"),
        pytest.param({"messages": [USER], "picks": {"x": "s" * 129}}, id="long-sense-picks"),
        pytest.param([USER], id="list"),
    ],
)
def test_malformed_requests_are_refused(client: TestClient, service: ScriptedService, body: Any) -> None:
    assert client.post("/v1/sae/inspect", json=body).status_code == 422
    assert service.calls == []


def test_long_messages_that_are_each_allowed_are_too_long_together(
    client: TestClient, service: ScriptedService
) -> None:
    half = {"role": "user", "content": "x" * (MAX_CHARACTERS // 2 + 1)}
    response = client.post("/v1/sae/inspect", json={"messages": [half, half]})
    assert response.status_code == 413
    assert f"longer than {MAX_CHARACTERS} characters" in response.json()["error"]["message"]
    assert service.calls == []


def test_a_body_without_end_is_not_read_to_its_end(client: TestClient, service: ScriptedService) -> None:
    headers = {"Content-Type": "application/json"}
    assert client.post("/v1/sae/inspect", content=b" " * (MAX_BODY + 1), headers=headers).status_code == 413
    assert service.calls == []


def test_what_is_no_json_is_refused(client: TestClient, service: ScriptedService) -> None:
    headers = {"Content-Type": "application/json"}
    assert client.post("/v1/sae/inspect", content=b"{", headers=headers).status_code == 422
    assert service.calls == []


@pytest.mark.parametrize(
    "messages",
    [[{"role": "user", "content": "x" * MAX_CHARACTERS}], [{"role": "r" * 32, "content": ""}] * MAX_MESSAGES],
    ids=["characters", "messages"],
)
def test_the_limits_themselves_are_allowed(client: TestClient, service: ScriptedService, messages: Any) -> None:
    assert client.post("/v1/sae/inspect", json={"messages": messages, "domain": "d" * 64}).status_code == 200
    assert service.calls == [(messages, "d" * 64, None, True)]


def test_an_input_error_is_the_clients(client: TestClient, service: ScriptedService) -> None:
    service.error = InputError("The prompt is empty.", "Write something.")
    response = client.post("/v1/sae/inspect", json={"messages": [USER]})
    assert response.status_code == 422
    assert response.json()["error"]["message"] == "The prompt is empty. Write something."


@pytest.mark.parametrize(
    "error", [EngineError("Broken.", "Mend it."), SensecheckError("Broken.", "Mend it.")], ids=repr
)
def test_any_other_error_of_ours_is_the_servers_and_logged(
    client: TestClient, service: ScriptedService, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    service.error = error
    with caplog.at_level(logging.ERROR, logger="sensecheck"):
        response = client.post("/v1/sae/inspect", json={"messages": [USER]})
    assert response.status_code == 500
    assert response.json()["error"] == {"message": "Broken. Mend it.", "type": "sensecheck", "code": 500}
    assert [(record.name, record.levelname) for record in caplog.records] == [("sensecheck", "ERROR")]


def test_a_foreign_error_tells_the_client_nothing(client: TestClient, service: ScriptedService) -> None:
    service.error = RuntimeError("/home/secret")
    response = client.post("/v1/sae/inspect", json={"messages": [USER]})
    assert response.status_code == 500
    assert "secret" not in response.text


def test_a_busy_server_says_when_to_come_back(client: TestClient, service: ScriptedService) -> None:
    service.error = BusyError("64 readings are under way.")
    response = client.post("/v1/sae/inspect", json={"messages": [USER]})
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")


def test_before_the_start_there_is_no_reading(starting: TestClient) -> None:
    response = starting.post("/v1/sae/inspect", json={"messages": [USER]})
    assert response.status_code == 503
    assert response.json()["error"]["message"] == "The inspector is not ready."
    assert starting.get("/v1/sae/health").json() == {"status": "starting"}


def test_health_names_the_artefacts(client: TestClient) -> None:
    response = client.get("/v1/sae/health")
    assert response.status_code == 200
    fingerprints = {"weights": "w", "config": "c", "tokenizer": "t", "chat_template": "ct", "sae": "s"}
    assert response.json() == {
        "status": "ok", "model": "tiny", "layer": 3, "engine": "transformers", "fingerprints": fingerprints,
        "concepts": 2, "counters": {"inspected": 3}, "waiting": 0, "catalog": None,
    }  # fmt: skip


def test_residual_streams_are_not_handed_out_beside_vllm(client: TestClient) -> None:
    assert client.post("/v1/sae/residual", json={"token_ids": [1]}).status_code == 404


def test_the_routes_are_documented(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    assert all(path.startswith("/v1/") for path in paths)  # what vLLM's API key guards
    assert paths.keys() >= {"/v1/sae/inspect", "/v1/sae/features/{index}", "/v1/sae/health"}


@pytest.mark.parametrize(
    ("path", "method", "statuses"),
    [
        ("/v1/sae/inspect", "post", ["400", "413", "422", "500", "503"]),
        ("/v1/sae/features/{index}", "get", ["400", "404", "422", "503"]),
    ],
)
def test_every_refusal_is_documented(client: TestClient, path: str, method: str, statuses: list[str]) -> None:
    """Found by fuzzing with the description: clients made from it knew of 200 and 422 alone."""
    answers = client.get("/openapi.json").json()["paths"][path][method]["responses"]
    assert sorted(answers) == ["200", *statuses]
    assert all("Refusal" in str(answers[status]["content"]["application/json"]["schema"]) for status in statuses)
