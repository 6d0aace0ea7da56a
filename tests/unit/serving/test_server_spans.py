"""The server's OpenTelemetry spans: whose children they are, what they say, and that vLLM's spans join them."""

from __future__ import annotations

import asyncio
import json
import logging
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi.testclient import TestClient
from opentelemetry import trace

from sae_runtime import tracing
from sae_runtime.engines.vllm.channel import Inbox
from sae_runtime.errors import EngineError
from sae_runtime.serving.readers import WorkerReader

CANARY = "zebracanary"
PROMPT = f"How often should I clean my mouse, {CANARY}?"
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
HEADER = {"traceparent": f"00-{TRACE}-{PARENT}-01"}


def inspect(client: TestClient, **options: Any) -> Any:
    headers = options.pop("headers", {})
    body = {"messages": [{"role": "user", "content": PROMPT}], "tokens": False, **options}
    return client.post("/v1/sae/inspect", json=body, headers=headers)


def test_a_span_says_what_was_read_and_nothing_of_the_prompt(client: TestClient, spans: Any) -> None:
    assert inspect(client, domain="biology").json()["misreads"]
    (span,) = spans.get_finished_spans()
    assert (span.name, span.kind, span.parent) == ("sensecheck.inspection", trace.SpanKind.SERVER, None)
    said = dict(span.attributes)
    assert said["sensecheck.outcome"] == "flagged"
    assert (said["sensecheck.mentions"], said["sensecheck.flags"], said["sensecheck.notes"]) == (1, 1, 1)
    assert said["sensecheck.tokens"] > 0
    assert {f"sensecheck.{step}.seconds" for step in ("queue", "plan", "read", "judge")} <= said.keys()
    assert CANARY not in span.to_json()
    assert "mouse" not in span.to_json()


def test_it_belongs_to_the_clients_trace(client: TestClient, spans: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="sensecheck"):
        inspect(client, headers=HEADER)
    (span,) = spans.get_finished_spans()
    assert f"{span.context.trace_id:032x}" == TRACE
    assert f"{span.parent.span_id:016x}" == PARENT
    fields = next(record.__dict__["fields"] for record in caplog.records if record.getMessage() == "inspection")
    assert (fields["trace"], fields["id"]) == (TRACE, span.attributes["sensecheck.id"])


@pytest.mark.parametrize("header", ["", "00-zz-zz-01", "00-" + "0" * 32 + "-" + "0" * 16 + "-01", "x" * 5000, "é"])
def test_a_header_that_is_no_trace_is_ignored(client: TestClient, spans: Any, header: str) -> None:
    assert inspect(client, headers={"traceparent": header.encode("latin-1")}).status_code == 200
    (span,) = spans.get_finished_spans()
    assert span.parent is None


@pytest.mark.parametrize("error", [EngineError("Broken."), RuntimeError(PROMPT)], ids=["ours", "foreign"])
def test_a_failure_is_named_by_its_reason_only(
    client: TestClient, quiet_reader: Any, spans: Any, error: Exception
) -> None:
    quiet_reader.error = error
    inspect(client)
    (span,) = spans.get_finished_spans()
    assert span.status.status_code is trace.StatusCode.ERROR
    assert span.attributes["error.type"] in ("EngineError", "other")
    assert span.events == ()
    assert CANARY not in span.to_json()


def test_without_a_provider_nothing_is_recorded(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even attributes are made: the span that is not recorded swallows them."""

    def never(*arguments: Any) -> None:
        raise AssertionError

    monkeypatch.setattr("opentelemetry.trace._TRACER_PROVIDER", None)
    monkeypatch.setattr("opentelemetry.trace.NonRecordingSpan.set_attributes", never)
    assert inspect(client, headers=HEADER).status_code == 200
    assert tracing.outgoing() == {}
    assert tracing.trace_id() is None


def test_without_the_api_everything_else_goes_on(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "_api", None)
    assert inspect(client, headers=HEADER).status_code == 200
    assert (tracing.outgoing(), tracing.trace_id()) == ({}, None)


def test_a_trace_that_is_open_already_is_kept(spans: Any) -> None:
    """The application may be instrumented itself; its span is the nearer parent."""
    with tracing.span("outer"):
        outer = tracing.trace_id()
        with tracing.incoming(HEADER):
            assert tracing.trace_id() == outer
    with tracing.incoming(HEADER):
        assert tracing.trace_id() == TRACE
    assert tracing.trace_id() is None


async def test_vllms_span_of_the_prefill_becomes_a_child(spans: Any) -> None:
    """vLLM takes the parent from `trace_headers`, and warns of them where it does not trace."""
    from vllm.tracing import extract_trace_context

    asked: list[Any] = []

    class Engine:
        async def generate(self, prompt: Any, sampling: Any, **options: Any) -> Any:
            asked.append(options["trace_headers"])
            if False:
                yield

    inbox = Inbox("test-spans")
    try:
        plan = SimpleNamespace(chat=SimpleNamespace(token_ids=[1, 2]), latents=None)
        reader = WorkerReader(Engine(), inbox)
        with tracing.span("sensecheck.inspection"), pytest.raises(EngineError):
            await reader.features(plan)  # type: ignore[arg-type]
        with pytest.raises(EngineError):
            await reader.features(plan)  # type: ignore[arg-type]
    finally:
        await inbox.close()
    traced, untraced = asked
    (span,) = spans.get_finished_spans()
    parent = trace.get_current_span(extract_trace_context(traced)).get_span_context()
    assert (parent.trace_id, parent.span_id) == (span.context.trace_id, span.context.span_id)
    assert untraced is None


async def test_a_chat_completion_without_a_trace_gets_ours(spans: Any) -> None:
    """vLLM reads a request's headers only when it answers; those that the client sent stay as they are."""
    from starlette.requests import Request

    def request(*headers: tuple[bytes, bytes]) -> Request:
        made = Request({"type": "http", "headers": headers})
        assert made.headers.get("x") is None  # somebody has looked at them before, as the route does
        return made

    theirs = request((b"traceparent", HEADER["traceparent"].encode()))
    ours, untraced = request((b"host", b"a")), request()
    tracing.add_to(untraced.scope["headers"])
    with tracing.span("sensecheck.inspection"):
        tracing.add_to(theirs.scope["headers"])
        tracing.add_to(ours.scope["headers"])
        expected = tracing.outgoing()["traceparent"]
        await asyncio.sleep(0)
    assert theirs.headers.getlist("traceparent") == [HEADER["traceparent"]]
    assert ours.headers.getlist("traceparent") == [expected]
    assert json.dumps(dict(untraced.headers)) == "{}"
