"""One-call completions without an engine: they are counted, traced and logged like other inspections."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from prometheus_client import REGISTRY

from sae_runtime.errors import EngineError
from sae_runtime.serving.observer import Observer
from sae_runtime.serving.prompt_log import PromptLog
from sae_runtime.serving.service import ReadingService

with warnings.catch_warnings():  # PyTorch warns of itself while vLLM's server is imported
    warnings.simplefilter("ignore")
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionResponse
    from vllm.entrypoints.serve.engine.protocol import ErrorInfo, ErrorResponse, UsageInfo

    from sae_runtime.serving import one_call

CANARY = "zebracanary"
PROMPT = f"How often should I clean my mouse, {CANARY}?"
BLOCKS = [{"type": "text", "text": PROMPT}]


class Engine:
    """Stands in for vLLM's handler; keeps the trace that each request came with, refuses prompts beyond ``room``."""

    def __init__(self) -> None:
        self.traces: list[str | None] = []
        self.room = 10**9

    async def create_chat_completion(self, request: Any, raw: Any) -> Any:
        self.traces.append(raw.headers.get("traceparent"))
        if len(str(request.messages[-1]["content"])) > self.room:
            return ErrorResponse(error=ErrorInfo(message="too long", type="BadRequestError", code=400))
        choice = {"index": 0, "message": {"role": "assistant", "content": "Weekly."}, "finish_reason": "stop"}
        return ChatCompletionResponse(model="m", choices=[choice], usage=UsageInfo())  # type: ignore[list-item]


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def prompt_log(log_options: Callable[..., Any]) -> Iterator[PromptLog]:
    log = PromptLog(log_options())
    yield log
    log.close()


@pytest.fixture
def chat(tiny_detector: Any, quiet_reader: Any, engine: Engine, prompt_log: PromptLog) -> Iterator[TestClient]:
    app = FastAPI()
    app.state.openai_serving_chat = engine
    route = one_call.OneCall()
    route.service = ReadingService(tiny_detector, quiet_reader, Observer(prompt_log))
    route.attach(app)
    with TestClient(app) as client:
        yield client


def complete(chat: TestClient, content: Any = PROMPT, **headers: str) -> Any:
    body = {"model": "m", "messages": [{"role": "user", "content": content}], "sensecheck": {"domain": "biology"}}
    response = chat.post("/v1/chat/completions", json=body, headers=headers)
    assert response.status_code == 200, response.text
    return response.json()["sensecheck"]


def value(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, {"route": "one_call", **labels}) or 0.0


def test_outcomes_and_reasons_are_counted(chat: TestClient, quiet_reader: Any, engine: Engine) -> None:
    outcomes = ("flagged", "clear", "unread")
    reasons = ("InputError", "EngineError", "notes_refused")
    before = {name: value("sensecheck_inspections_total", outcome=name) for name in outcomes}
    before |= {name: value("sensecheck_bypasses_total", reason=name) for name in reasons}
    assert complete(chat)["flagged"]
    assert complete(chat, "Say hello.")["bypassed"] is None
    assert complete(chat, BLOCKS)["bypassed"] == "InputError"
    engine.room = len(PROMPT) + 3
    assert complete(chat)["notes_left_out"] == 1
    quiet_reader.error = EngineError("Broken.")
    assert complete(chat)["bypassed"] == "EngineError"
    moved = {name: value("sensecheck_inspections_total", outcome=name) - before[name] for name in outcomes}
    moved |= {name: value("sensecheck_bypasses_total", reason=name) - before[name] for name in reasons}
    assert moved == {"flagged": 2, "clear": 1, "unread": 2, "InputError": 1, "EngineError": 1, "notes_refused": 1}


def test_texts_are_logged_where_asked_for_and_other_parts_are_not(
    chat: TestClient, prompt_log: PromptLog, log_options: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        complete(chat)
        complete(chat, BLOCKS)
    prompt_log.close()
    text, blocks = (json.loads(line) for line in Path(log_options().path).read_text().splitlines())
    assert (text["route"], text["outcome"]) == ("one_call", "flagged")
    assert text["messages"] == [{"role": "user", "content": PROMPT}]
    assert (blocks["outcome"], blocks["reason"], blocks["messages"]) == ("unread", "InputError", [])
    lines = [record.__dict__["fields"] for record in caplog.records if record.getMessage() == "inspection"]
    assert [line["id"] for line in lines] == [text["id"], blocks["id"]]
    assert {"plan_ms", "read_ms", "judge_ms"} <= lines[0].keys()
    assert CANARY not in caplog.text
    assert not any(CANARY in str(line) for line in lines)


def test_vllms_span_of_the_answer_joins(chat: TestClient, engine: Engine, spans: Any) -> None:
    """A client without a trace gets ours, for the answer with notes, too; another keeps its own."""
    complete(chat)
    (span,) = spans.get_finished_spans()
    ours = f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}-"
    assert len(engine.traces) == 2  # begun, and begun anew with the notes
    assert all(trace and trace.startswith(ours) for trace in engine.traces)
    theirs = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    complete(chat, traceparent=theirs)
    assert engine.traces[2:] == [theirs, theirs]
    assert f"{spans.get_finished_spans()[1].context.trace_id:032x}" == theirs.split("-")[1]


def test_without_a_provider_the_answer_carries_no_trace(
    chat: TestClient, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("opentelemetry.trace._TRACER_PROVIDER", None)
    complete(chat)
    assert engine.traces == [None, None]
