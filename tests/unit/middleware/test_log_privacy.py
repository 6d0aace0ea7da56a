"""What the middleware's logs hold: neither prompts nor keys, also where a server quotes them."""

from __future__ import annotations

import contextlib
import json
import logging
import pickle
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from loopback import on_a_thread

from middleware import SAEAnnotator, ServerSource
from middleware.testing import FakeInspector
from sae_runtime.errors import EngineError, InputError, SensecheckError

Call = Callable[..., Any]
CANARY, KEY, PASSWORD = "zebracanary", "keycanary", "passcanary"
TEXT = f"I sat on the bank, {CANARY}."
VLLMS = {
    "message": f"1 validation error:\n  {{'type': 'string_type', 'loc': 'body.messages', 'input': '{TEXT}'}}",
    "type": "Bad Request",
    "code": 400,
}


class Handler(BaseHTTPRequestHandler):
    """Answers with the next of ``answers``, a status and a body; keeps the headers."""

    answers: list[tuple[int, bytes]]
    seen: list[dict[str, str]]

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.seen.append({name.lower(): value for name, value in self.headers.items()})
        status, body = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


class Server:
    def __init__(self, port: int) -> None:
        self.port = port
        self.answers: list[tuple[int, bytes]] = []
        self.seen: list[dict[str, str]] = []

    def answer(self, status: int, body: Any) -> None:
        self.answers[:] = [(status, json.dumps(body).encode() if isinstance(body, dict) else body)]


@pytest.fixture
def server() -> Iterator[Server]:
    handler = type("Handler", (Handler,), {})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        made = Server(http.server_address[1])
        handler.answers, handler.seen = made.answers, made.seen  # type: ignore[attr-defined]
        with on_a_thread(http):
            yield made


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """All loggers of the process, at DEBUG level."""
    with caplog.at_level(logging.DEBUG), caplog.at_level(logging.DEBUG, logger="sensecheck"):
        yield caplog


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (400, {"error": VLLMS}),
        (422, {"error": {"message": TEXT}}),
        (502, f"<html>{TEXT}</html>".encode()),
        (500, TEXT.encode()),
        (200, TEXT.encode()),
        (503, {"error": TEXT}),
    ],
    ids=["vllm", "untyped", "proxy", "text", "no-reading", "odd"],
)
def test_what_a_server_quotes_does_not_reach_the_log(
    server: Server, log: pytest.LogCaptureFixture, call: Call, status: int, body: Any
) -> None:
    server.answer(status, body)
    with contextlib.closing(ServerSource(f"http://127.0.0.1:{server.port}", api_key=KEY)) as source:
        call(SAEAnnotator(source=source, grace=None), "invoke", TEXT)
    warnings = [record for record in log.records if record.name == "sensecheck"]
    assert len(warnings) == 1
    assert f"answered {status}: [...]" in warnings[0].getMessage() or status == 200
    assert CANARY not in log.text
    assert KEY not in log.text


def test_the_caller_is_told_all_of_it(server: Server, call: Call) -> None:
    server.answer(400, {"error": VLLMS})
    with contextlib.closing(ServerSource(f"http://127.0.0.1:{server.port}")) as source:
        annotator = SAEAnnotator(source=source, on_error="raise")
        with pytest.raises(InputError, match="1 validation error") as caught:
            call(annotator, "invoke", TEXT)
    assert CANARY in str(caught.value)
    assert CANARY not in caught.value.unquoted()
    assert CANARY not in pickle.loads(pickle.dumps(caught.value)).unquoted()  # noqa: S301 (our own)


def test_our_own_servers_words_are_logged(server: Server, log: pytest.LogCaptureFixture, call: Call) -> None:
    server.answer(422, {"error": {"message": "The prompt is empty.", "type": "sensecheck", "code": 422}})
    with contextlib.closing(ServerSource(f"http://127.0.0.1:{server.port}")) as source:
        call(SAEAnnotator(source=source), "invoke", TEXT)
    assert "The server answered 422: The prompt is empty." in log.text


def test_a_password_in_the_address_is_used_but_neither_shown_nor_logged(
    server: Server, log: pytest.LogCaptureFixture, call: Call
) -> None:
    server.answer(500, b"{}")
    source = ServerSource(f"http://user:{PASSWORD}%21@127.0.0.1:{server.port}/v1")
    with contextlib.closing(source), contextlib.closing(pickle.loads(pickle.dumps(source))) as copy:  # noqa: S301 (our own)
        for one in (source, copy):
            call(SAEAnnotator(source=one), "invoke", TEXT)
            assert repr(one) == f"ServerSource('http://127.0.0.1:{server.port}')"
    expected = httpx.Request("GET", "http://h", headers={})
    next(httpx.BasicAuth("user", f"{PASSWORD}!").auth_flow(expected))
    assert [headers["authorization"] for headers in server.seen] == [expected.headers["authorization"]] * 2
    assert "httpx" in {
        record.name for record in log.records
    }  # it logs the address of every request; the text may be in Ray's format
    assert PASSWORD not in log.text


@pytest.mark.parametrize("key", [f"{KEY}\n", f"{KEY}é", f"{KEY}\x00"], ids=["line-end", "accent", "nul"])
def test_a_key_that_no_header_can_carry_is_refused_without_showing_it(key: str) -> None:
    with pytest.raises(SensecheckError) as caught:
        ServerSource("http://127.0.0.1:1", api_key=key)
    assert KEY not in repr(caught.value) + str(caught.value)
    assert caught.value.__cause__ is None


def test_annotating_in_process_stores_and_logs_no_prompt(
    log: pytest.LogCaptureFixture, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SENSECHECK_HOME", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    fake = FakeInspector({"bank": "The edge of a river."}, outcomes=[None, EngineError("Broken."), RuntimeError(TEXT)])
    annotator = SAEAnnotator(source=fake)
    for _ in range(3):
        call(annotator, "invoke", TEXT)
    assert sum(annotator.stats.bypassed.values()) == 2
    assert CANARY not in log.text
    assert list(tmp_path.rglob("*")) == []
