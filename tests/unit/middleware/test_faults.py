"""A server that misbehaves in every way, and a catalog that is gone: the chain answers, and the statistics say why.

The server is a real one on 127.0.0.1; what goes wrong, goes wrong on the wire.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import socket
import sqlite3
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import BaseMessage, HumanMessage
from loopback import on_a_thread
from sqlalchemy.orm import Session

from middleware import CatalogSource, InspectionRequest, SAEAnnotator, ServerSource, Stats
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
from sae_runtime.errors import (
    CatalogError,
    InputError,
    InspectionTimeout,
    SensecheckError,
    ServerError,
    UnavailableError,
)
from sae_runtime.paths import CATALOG_FILE
from sae_runtime.sae import JumpReLUSAE

Call = Callable[..., Any]

PATIENCE = 30.0  # seconds; only a broken product waits that long
SHORT = 0.2  # seconds; a deadline that is meant to be missed
TEXT = "On the bank I sat."
NOTED = f"{TEXT}\n\n[Note on the wording above: A note.]"
FINGERPRINTS = {"weights": "w", "config": "c", "tokenizer": "t", "chat_template": "h", "sae": "s"}


class FaultyServer(ThreadingHTTPServer):
    """Plays ``plan``: one fault per reading that is asked for, the last one again and again. Keeps connections alive.

    Attributes:
        plan: what happens to the readings.
        good: body of an answer without fault.
        asked: texts of the last messages of the readings that were asked for.
        health: answer of the health route.
        health_statuses: its first statuses; 200 after those.
        entered: released once per reading that was asked for.
        ended: set at the end of the test; whoever waits, stops.
    """

    daemon_threads = False  # closing the server waits for its threads

    def __init__(self, good: bytes) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.plan: list[Callable[[_Handler], None]] = [fine]
        self.good = good
        self.asked: list[str] = []
        self.health: Any = {"status": "ok", "fingerprints": FINGERPRINTS}
        self.health_statuses: list[int] = []
        self.entered = threading.Semaphore(0)
        self.ended = threading.Event()
        self._sockets: list[socket.socket] = []

    def process_request(self, request: Any, client_address: Any) -> None:
        self._sockets.append(request)
        super().process_request(request, client_address)

    def end(self) -> None:
        """Let waiting answers go, and hang up idle connections."""
        self.ended.set()
        self.shutdown()
        for connection in self._sockets:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: clients that give up are what these tests are about."""


class _Handler(BaseHTTPRequestHandler):
    server: FaultyServer
    protocol_version = "HTTP/1.1"
    last = ""

    def do_GET(self) -> None:
        status = self.server.health_statuses.pop(0) if self.server.health_statuses else 200
        self.answer(status, json.dumps(self.server.health).encode())

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.last = body["messages"][-1]["content"]
        self.server.asked.append(self.last)
        plan = self.server.plan
        fault = plan.pop(0) if len(plan) > 1 else plan[0]
        self.server.entered.release()
        fault(self)

    def answer(self, status: int, body: bytes, *, said: int | None = None) -> None:
        """An answer of ``body`` that says it has ``said`` bytes."""
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if said is None else said))
        self.end_headers()
        self.wfile.write(body)

    def reset(self) -> None:
        """Tear the connection down, so that the client sees a reset and no orderly end."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.rfile.close()
        self.wfile.close()
        self.connection.close()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


def fine(handler: _Handler) -> None:
    handler.answer(200, handler.server.good)


def body(content: bytes) -> Callable[[_Handler], None]:
    """A success with another body."""
    return lambda handler: handler.answer(200, content)


def refusal(status: int, content: bytes = b'{"error": {"message": "No."}}') -> Callable[[_Handler], None]:
    return lambda handler: handler.answer(status, content)


def held(handler: _Handler) -> None:
    handler.server.ended.wait(PATIENCE)
    handler.close_connection = True


def trickling(handler: _Handler) -> None:
    """A byte every 20 ms: no gap is long, the whole takes many seconds."""
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(handler.server.good)))
    handler.end_headers()
    for byte in handler.server.good:
        handler.wfile.write(bytes([byte]))
        if handler.server.ended.wait(0.02):
            return


def trickling_head(handler: _Handler) -> None:
    """The same with the head of the answer, which then ends."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
    for number in range(25):
        handler.wfile.write(f"X-{number}: .\r\n".encode())
        handler.server.ended.wait(0.02)
    handler.wfile.write(f"Content-Length: {len(handler.server.good)}\r\n\r\n".encode() + handler.server.good)


def reset_in_the_body(handler: _Handler) -> None:
    good = handler.server.good
    handler.answer(200, good[: len(good) // 2], said=len(good))
    handler.wfile.flush()
    handler.reset()


def ended_in_the_body(handler: _Handler) -> None:
    good = handler.server.good
    handler.answer(200, good[: len(good) // 2], said=len(good))
    handler.close_connection = True


def closed_before_the_answer(handler: _Handler) -> None:
    handler.close_connection = True


def reset_before_the_answer(handler: _Handler) -> None:
    handler.reset()


def no_http(handler: _Handler) -> None:
    handler.wfile.write(b"SSH-2.0-OpenSSH_9.6\r\n")
    handler.close_connection = True


def wrongly_packed(handler: _Handler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Encoding", "gzip")
    handler.send_header("Content-Length", str(len(handler.server.good)))
    handler.end_headers()
    handler.wfile.write(handler.server.good)


def by_text(faults: dict[str, Callable[[_Handler], None]]) -> Callable[[_Handler], None]:
    """The fault whose name is in the prompt; none where there is no such name."""

    def chosen(handler: _Handler) -> None:
        next((fault for name, fault in faults.items() if name in handler.last), fine)(handler)

    return chosen


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


class Recorder(BaseCallbackHandler):
    """Keeps what the model was sent."""

    def __init__(self) -> None:
        self.sent: list[list[BaseMessage]] = []

    def on_chat_model_start(self, serialized: Any, messages: list[list[BaseMessage]], **kwargs: Any) -> None:
        self.sent.extend(messages)


@pytest.fixture
def server(reading_of: Any, misread_at: Any) -> Iterator[FaultyServer]:
    reading = reading_of([misread_at(TEXT, 7, 11, note="A note.")])
    with FaultyServer(reading.model_dump_json().encode()) as server, on_a_thread(server, server.end):
        yield server


@pytest.fixture
def source(server: FaultyServer) -> Iterator[ServerSource]:
    with contextlib.closing(ServerSource(server.url)) as source:
        yield source


@pytest.fixture
def few_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give up on a busy server soon; how long it is asked is not what the test is about."""
    monkeypatch.setattr("middleware.sources.server._FIRST_PAUSE", 0.01)
    monkeypatch.setattr("middleware.sources.server._LAST_TRY", 0.05)


@pytest.fixture
def long_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask a busy server again even where this machine is slow."""
    monkeypatch.setattr("middleware.sources.server._FIRST_PAUSE", 0.25)
    monkeypatch.setattr("middleware.sources.server._LAST_TRY", 2.0)


def annotated_by(source: Any, deadline: float = PATIENCE) -> SAEAnnotator:
    return SAEAnnotator(source=source, deadline=deadline, grace=None)


def chain_of(annotator: SAEAnnotator) -> Any:
    return annotator | FakeListChatModel(responses=["Wet feet."])


def ask(call: Call, annotator: SAEAnnotator) -> list[BaseMessage]:
    """What the model of a chain was sent; it answers in any case."""
    recorder = Recorder()
    answer = call(chain_of(annotator), "invoke", [HumanMessage(TEXT)], config={"callbacks": [recorder]})
    assert answer.content == "Wet feet."
    (sent,) = recorder.sent
    return sent


def passes(call: Call, annotator: SAEAnnotator, reason: str) -> None:
    """The model is sent the untouched prompt, and answers; the statistics name the reason, and nothing else."""
    assert ask(call, annotator) == [HumanMessage(TEXT)]
    assert annotator.stats == Stats(inspected=0, flagged=0, bypassed=Counter({reason: 1}))


def heals(call: Call, source: Any) -> None:
    """The same source annotates again."""
    annotator = annotated_by(source)
    assert ask(call, annotator) == [HumanMessage(NOTED)]
    assert annotator.stats == Stats(inspected=1, flagged=1)


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

    def endless(handler: _Handler) -> None:
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


FAULT_BY_NAME: dict[str, Callable[[_Handler], None]] = {
    "broken": refusal(500),
    "slow": held,
    "refused": refusal(422),
    "garbage": body(b"<html>"),
}


def test_a_batch_in_which_some_prompts_fail(server: FaultyServer, source: ServerSource, call: Call) -> None:
    server.plan = [by_text(FAULT_BY_NAME)]
    inputs = [f"{TEXT} {name}" for name in ("fine", "broken", "slow", "fine too", "refused", "garbage")]
    annotator = annotated_by(source, 3.0)
    recorder = Recorder()
    answers = call(chain_of(annotator), "batch", inputs, config={"callbacks": [recorder]})
    assert [answer.content for answer in answers] == ["Wet feet."] * 6
    noted = [text + NOTED.removeprefix(TEXT) if "fine" in text else text for text in inputs]
    assert sorted(messages[0].content for messages in recorder.sent) == sorted(noted)
    assert annotator.stats == Stats(2, 2, Counter({"ServerError": 2, "timeout": 1, "InputError": 1}))


def test_a_batch_keeps_the_order_and_each_failure_its_place(
    server: FaultyServer, source: ServerSource, call: Call
) -> None:
    server.plan = [by_text(FAULT_BY_NAME)]
    names = ["fine", "broken", "slow", "fine too", "refused"]
    requests = [InspectionRequest([{"role": "user", "content": f"{TEXT} {name}"}], [0]) for name in names]
    outcomes = call(source, "inspect_batch", requests, deadline=3.0)
    kinds = [type(outcome).__name__ for outcome in outcomes]
    assert kinds == ["Reading", "ServerError", "InspectionTimeout", "Reading", "InputError"]


def test_a_batch_that_all_fails_raises_nothing_in_a_source(
    server: FaultyServer, source: ServerSource, call: Call
) -> None:
    server.plan = [held]
    requests = [InspectionRequest([{"role": "user", "content": TEXT}], [0])] * 5
    outcomes = call(source, "inspect_batch", requests, deadline=SHORT, limit=2)
    assert [type(outcome) for outcome in outcomes] == [InspectionTimeout] * 5
    assert len(server.asked) <= 2  # the others had no time left and were not sent


async def entered(server: FaultyServer) -> None:
    """Wait until the server has been asked for a reading."""
    assert await asyncio.to_thread(server.entered.acquire, timeout=PATIENCE)


async def test_a_cancelled_task_is_no_bypass_and_spoils_nothing(server: FaultyServer, source: ServerSource) -> None:
    server.plan = [*[held] * 6, fine]
    annotator = annotated_by(source)
    chain = chain_of(annotator)
    for _ in range(6):  # more than the failures that open the circuit
        task = asyncio.create_task(chain.ainvoke(TEXT))
        await entered(server)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert annotator.stats == Stats()
    assert (await chain.ainvoke(TEXT)).content == "Wet feet."
    assert annotator.stats == Stats(inspected=1, flagged=1)
    await source.aclose()


async def test_a_cancelled_stream_is_no_bypass_and_spoils_nothing(server: FaultyServer, source: ServerSource) -> None:
    server.plan = [held, fine]
    annotator = annotated_by(source)
    chain = chain_of(annotator)

    async def streamed() -> str:
        return "".join([chunk.content async for chunk in chain.astream(TEXT)])

    task = asyncio.create_task(streamed())
    await entered(server)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert annotator.stats == Stats()
    assert await streamed() == "Wet feet."
    assert annotator.stats == Stats(inspected=1, flagged=1)
    await source.aclose()


async def test_a_stream_that_is_left_early_has_been_read(server: FaultyServer, source: ServerSource) -> None:
    annotator = annotated_by(source)
    stream = chain_of(annotator).astream(TEXT)
    assert (await anext(stream)).content == "W"
    await stream.aclose()
    assert annotator.stats == Stats(inspected=1, flagged=1)
    await source.aclose()


async def test_one_of_several_callers_may_be_cancelled(server: FaultyServer, source: ServerSource) -> None:
    server.plan = [by_text({"slow": held})]
    annotator = annotated_by(source)
    slow = asyncio.create_task(annotator.ainvoke(f"{TEXT} slow"))
    await entered(server)
    quick = asyncio.create_task(annotator.ainvoke(TEXT))
    assert await quick == [HumanMessage(NOTED)]
    slow.cancel()
    with pytest.raises(asyncio.CancelledError):
        await slow
    assert annotator.stats == Stats(inspected=1, flagged=1)
    await source.aclose()


def test_each_event_loop_has_its_own_connections_and_a_closed_one_leaves_none(
    server: FaultyServer, source: ServerSource
) -> None:
    annotator = annotated_by(source)
    for _ in range(4):  # a script that calls asyncio.run for each prompt
        assert asyncio.run(annotator.ainvoke(TEXT)) == [HumanMessage(NOTED)]
        assert annotator.invoke(TEXT) == [HumanMessage(NOTED)]
    gc.collect()
    assert annotator.stats == Stats(inspected=8, flagged=8)
    assert len(source._clients) <= 2  # that of synchronous calls, and of the last loop


def test_two_event_loops_may_use_a_source_at_once(server: FaultyServer, source: ServerSource) -> None:
    annotator = annotated_by(source)
    both = threading.Barrier(2)

    async def several() -> list[Any]:
        await asyncio.to_thread(both.wait, PATIENCE)
        return [await annotator.ainvoke(TEXT) for _ in range(5)]

    results: list[Any] = []
    threads = [threading.Thread(target=lambda: results.append(asyncio.run(several()))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [[[HumanMessage(NOTED)]] * 5] * 2
    assert annotator.stats == Stats(inspected=10, flagged=10)


def test_a_closed_event_loop_does_not_spoil_readings_in_this_process(catalog: Path) -> None:
    inspector = inspector_of(CatalogView.load(catalog))
    annotator = annotated_by(CatalogSource(inspector))
    for _ in range(3):
        assert asyncio.run(annotator.ainvoke(TEXT)) == [HumanMessage(NOTED)]
    assert annotator.stats == Stats(inspected=3, flagged=3)


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
