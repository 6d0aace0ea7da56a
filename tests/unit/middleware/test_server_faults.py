"""A server that misbehaves in every way: the chain answers, and the statistics say why.

The server is a real one on 127.0.0.1; what goes wrong, goes wrong on the wire.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from asking import NOTED, TEXT, annotated_by, ask, heals, passes
from faulty_server import (
    PATIENCE,
    SHORT,
    FaultyServer,
    Handler,
    body,
    closed_before_the_answer,
    ended_in_the_body,
    fine,
    held,
    no_http,
    refusal,
    reset_before_the_answer,
    reset_in_the_body,
    trickling,
    trickling_head,
    wrongly_packed,
)
from langchain_core.messages import HumanMessage

from middleware import InspectionRequest, ServerSource, Stats
from sae_runtime.errors import InputError, InspectionTimeout, SensecheckError, ServerError, UnavailableError

Call = Callable[..., Any]

FAULTS = [
    pytest.param(refusal(400), "InputError", id="400"),
    pytest.param(refusal(401), "ServerError", id="401"),
    pytest.param(refusal(404), "ServerError", id="404"),
    pytest.param(refusal(422), "InputError", id="422"),
    pytest.param(refusal(429), "UnavailableError", id="429"),
    pytest.param(refusal(500), "ServerError", id="500"),
    pytest.param(refusal(500, b"\xff<html>"), "ServerError", id="500-html"),
    pytest.param(refusal(503), "UnavailableError", id="503"),
    pytest.param(body(b'{"model": "m", "mentions": ['), "ServerError", id="malformed"),
    pytest.param(body(b""), "ServerError", id="empty"),
    pytest.param(body(b'{"object": "chat.completion", "choices": []}'), "ServerError", id="other-shape"),
    pytest.param(body(b"[" * 100_000), "ServerError", id="deep"),
    pytest.param(wrongly_packed, "ServerError", id="wrongly-packed"),
    pytest.param(reset_in_the_body, "UnavailableError", id="reset-in-the-body"),
    pytest.param(ended_in_the_body, "UnavailableError", id="ended-in-the-body"),
    pytest.param(closed_before_the_answer, "UnavailableError", id="closed"),
    pytest.param(reset_before_the_answer, "UnavailableError", id="reset"),
    pytest.param(no_http, "UnavailableError", id="no-http"),
]
LATE = [
    pytest.param(held, id="held"),
    pytest.param(trickling, id="trickling"),
    pytest.param(trickling_head, id="trickling-head"),
]


@pytest.mark.parametrize(("fault", "reason"), FAULTS)
@pytest.mark.usefixtures("few_pauses")
def test_the_chain_answers_whatever_the_server_does(
    server: FaultyServer, source: ServerSource, call: Call, fault: Any, reason: str
) -> None:
    server.plan = [fault]
    passes(call, annotated_by(source), reason)
    server.plan = [fine]
    heals(call, source)


@pytest.mark.parametrize("fault", LATE)
def test_the_chain_answers_when_the_server_is_late(
    server: FaultyServer, source: ServerSource, call: Call, fault: Any
) -> None:
    server.plan = [fault]
    passes(call, annotated_by(source, SHORT), "timeout")
    server.plan = [fine]
    heals(call, source)


@pytest.mark.usefixtures("few_pauses")
def test_the_chain_answers_when_the_server_is_down(call: Call) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # bound, but nobody listens
        with contextlib.closing(ServerSource(f"http://127.0.0.1:{free.getsockname()[1]}")) as source:
            passes(call, annotated_by(source), "UnavailableError")


def test_the_chain_answers_when_the_server_sends_too_much(
    server: FaultyServer, source: ServerSource, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = len(server.good) + 1000
    monkeypatch.setattr("middleware.sources.server._MAX_ANSWER", limit)
    server.plan = [body(server.good + b" " * 2000)]  # a reading but for its size
    passes(call, annotated_by(source), "ServerError")
    server.plan = [fine]
    heals(call, source)


def test_what_is_sent_beyond_the_limit_is_not_read(
    server: FaultyServer, source: ServerSource, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("middleware.sources.server._MAX_ANSWER", 1000)

    def endless(handler: Handler) -> None:
        handler.answer(200, b" " * 2000, said=10**12)
        held(handler)

    server.plan = [endless]
    passes(call, annotated_by(source), "ServerError")


@pytest.mark.usefixtures("long_pauses")
@pytest.mark.parametrize("fault", [refusal(503), refusal(429), closed_before_the_answer, reset_in_the_body])
def test_a_server_that_is_busy_once_is_asked_again(
    server: FaultyServer, source: ServerSource, call: Call, fault: Any
) -> None:
    server.plan = [fault, fine]
    annotator = annotated_by(source)
    assert ask(call, annotator) == [HumanMessage(NOTED)]
    assert annotator.stats == Stats(inspected=1, flagged=1)
    assert server.asked == [TEXT, TEXT]


@pytest.mark.usefixtures("long_pauses")
def test_a_server_that_stays_busy_is_given_up_within_the_deadline(
    server: FaultyServer, source: ServerSource, call: Call
) -> None:
    server.plan = [refusal(503)]
    begun = time.monotonic()
    passes(call, annotated_by(source), "UnavailableError")  # and not: "timeout"
    assert time.monotonic() - begun < PATIENCE
    assert len(server.asked) > 1


@pytest.mark.parametrize(("status", "reason"), [(400, "InputError"), (401, "ServerError"), (500, "ServerError")])
def test_what_will_not_change_is_asked_once(
    server: FaultyServer, source: ServerSource, call: Call, status: int, reason: str
) -> None:
    server.plan = [refusal(status)]
    passes(call, annotated_by(source), reason)
    assert server.asked == [TEXT]


@pytest.mark.usefixtures("few_pauses")
def test_faults_open_the_circuit_and_refused_prompts_do_not(
    server: FaultyServer, source: ServerSource, call: Call
) -> None:
    server.plan = [refusal(422)] * 7 + [refusal(500)]
    annotator = annotated_by(source)
    for _ in range(14):
        assert ask(call, annotator) == [HumanMessage(TEXT)]
    assert annotator.stats.bypassed == Counter({"InputError": 7, "ServerError": 5, "circuit open": 2})
    assert len(server.asked) == 12


@pytest.mark.usefixtures("few_pauses")
@pytest.mark.parametrize(
    ("fault", "kind", "deadline"),
    [(refusal(422), InputError, PATIENCE), (refusal(500), ServerError, PATIENCE),
     (refusal(503), UnavailableError, PATIENCE), (held, InspectionTimeout, SHORT)],
    ids=["422", "500", "503", "held"],
)  # fmt: skip
def test_a_source_raises_what_it_promises_with_a_remedy(
    server: FaultyServer, source: ServerSource, call: Call, fault: Any, kind: type[SensecheckError], deadline: float
) -> None:
    server.plan = [fault]
    with pytest.raises(kind) as caught:
        call(source, "inspect", InspectionRequest([{"role": "user", "content": TEXT}], [0]), deadline=deadline)
    assert type(caught.value) is kind
    assert caught.value.remedy
