"""The annotator's OpenTelemetry span, and that a server's span would become its child."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from langchain_core.language_models import FakeListChatModel
from loopback import on_a_thread
from opentelemetry import trace

from middleware import SAEAnnotator, ServerSource
from middleware.testing import FakeInspector
from sae_runtime.errors import CircuitOpenError, EngineError

Call = Callable[..., Any]
CANARY = "zebracanary"
TEXT = f"I sat on the bank, {CANARY}."


@pytest.fixture
def fake() -> FakeInspector:
    return FakeInspector({"bank": "The edge of a river."})


def numbers(span: Any) -> dict[str, Any]:
    return {name.removeprefix("sensecheck."): value for name, value in span.attributes.items()}


def test_a_reading_is_one_span_without_text(fake: FakeInspector, spans: Any, call: Call) -> None:
    call(SAEAnnotator(source=fake), "invoke", TEXT)
    (span,) = spans.get_finished_spans()
    assert span.name == "sensecheck.annotate"
    assert numbers(span) == {"prompts": 1, "unread": 0, "mentions": 1, "flags": 1}
    assert CANARY not in span.to_json()
    assert "bank" not in span.to_json()


def test_prompts_that_are_read_together_share_one(fake: FakeInspector, spans: Any, call: Call) -> None:
    fake.outcomes = [None, EngineError(TEXT), None]
    call(SAEAnnotator(source=fake), "batch", [TEXT, TEXT, "Hello."])
    (span,) = spans.get_finished_spans()
    assert numbers(span) == {"prompts": 3, "unread": 1, "mentions": 1, "flags": 1}
    assert span.status.status_code is trace.StatusCode.UNSET


@pytest.mark.parametrize("error", [EngineError(TEXT), RuntimeError(TEXT)], ids=["ours", "foreign"])
def test_a_bypass_is_named_by_its_class_only(fake: FakeInspector, spans: Any, call: Call, error: Exception) -> None:
    fake.then = error
    call(SAEAnnotator(source=fake), "invoke", TEXT)
    (span,) = spans.get_finished_spans()
    assert numbers(span) == {"prompts": 1, "unread": 1, "error.type": type(error).__name__}
    assert span.status.status_code is trace.StatusCode.ERROR
    assert span.events == ()
    assert CANARY not in span.to_json()


def test_an_open_circuit_can_be_seen(fake: FakeInspector, spans: Any, call: Call) -> None:
    fake.then = EngineError("Broken.")
    annotator = SAEAnnotator(source=fake)
    for _ in range(6):
        call(annotator, "invoke", TEXT)
    assert spans.get_finished_spans()[-1].attributes["error.type"] == CircuitOpenError.__name__


def test_it_lies_inside_the_programs_own_span(fake: FakeInspector, spans: Any, call: Call) -> None:
    chain = SAEAnnotator(source=fake) | FakeListChatModel(responses=["Wet feet."])
    with trace.get_tracer("program").start_as_current_span("request") as outer:
        call(chain, "invoke", TEXT)
    annotate, request = spans.get_finished_spans()
    assert request.name == "request"
    assert annotate.parent.span_id == outer.get_span_context().span_id


class Echo(BaseHTTPRequestHandler):
    """Answers with no reading; keeps the headers."""

    headers_seen: list[dict[str, str]]

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.headers_seen.append({name.lower(): value for name, value in self.headers.items()})
        self.send_response(500)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture
def headers_seen(call: Call) -> Iterator[tuple[ServerSource, list[dict[str, str]]]]:
    seen: list[dict[str, str]] = []
    handler = type("Handler", (Echo,), {"headers_seen": seen})
    with (
        ThreadingHTTPServer(("127.0.0.1", 0), handler) as server,
        on_a_thread(server),
        closing(ServerSource(f"http://127.0.0.1:{server.server_address[1]}")) as source,
    ):
        yield source, seen


def test_the_server_is_told_the_trace(headers_seen: Any, spans: Any, call: Call) -> None:
    """Also from a synchronous call, whose request is sent by a thread in the background."""
    source, seen = headers_seen
    call(SAEAnnotator(source=source), "invoke", TEXT)
    (span,) = spans.get_finished_spans()
    _, trace_id, parent, sampled = seen[0]["traceparent"].split("-")
    assert (trace_id, parent) == (f"{span.context.trace_id:032x}", f"{span.context.span_id:016x}")
    assert int(sampled, 16) & 1
    assert "baggage" not in seen[0]


def test_calls_at_once_keep_their_traces_apart(headers_seen: Any, spans: Any) -> None:
    source, seen = headers_seen
    annotator = SAEAnnotator(source=source, grace=None)

    async def some() -> None:
        await asyncio.gather(*(annotator.ainvoke(TEXT) for _ in range(4)))
        await source.aclose()

    asyncio.run(some())
    told = {headers["traceparent"].split("-")[1] for headers in seen}
    assert told == {f"{span.context.trace_id:032x}" for span in spans.get_finished_spans()}
    assert len(told) == 4


def test_without_a_provider_no_header_is_sent(headers_seen: Any, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("opentelemetry.trace._TRACER_PROVIDER", None)
    source, seen = headers_seen
    call(SAEAnnotator(source=source), "invoke", TEXT)
    assert "traceparent" not in json.dumps(seen)
