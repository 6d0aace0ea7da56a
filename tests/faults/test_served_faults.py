"""The inspection server dies, hangs, or loses its worker or its client; what is asked next is answered.

Real HTTP servers with the product's routes on a tiny model; the same with vLLM is in
tests/integration/test_vllm_replicas.py. Everything that a server can do wrong on the wire is in
tests/unit/middleware/test_server_faults.py.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import struct
import threading
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi.testclient import TestClient
from faults.killing import Surroundings, start
from faults.making import MESSAGES, PATIENCE, annotated, eventually
from faults.serving import CONTEXT, app_of, work
from small_replica import SmallReplica

from middleware import SAEAnnotator
from sae_runtime.sae.fingerprint import fingerprint_sae
from sae_runtime.serving.plugin import SensecheckEndpoint
from sae_runtime.serving.service import ReadingService

SHORT = 0.3  # seconds; a deadline that is meant to be missed
BODY = json.dumps({"messages": MESSAGES}).encode()


@pytest.fixture
def server(tiny: Path, artefacts: Path, cache: Path) -> Iterator[SmallReplica]:
    server = SmallReplica(tiny, artefacts, cache)
    yield server
    server.kill()


def noted(annotator: SAEAnnotator) -> bool:
    """Whether the prompt was annotated."""
    return "First." in annotated(annotator)


def test_a_server_that_is_killed_and_started_again(server: SmallReplica, artefacts: Path) -> None:
    """The chain answers all the time, and is annotated again by the same annotator."""
    annotator = SAEAnnotator.from_url(server.url, deadline=PATIENCE, grace=None)
    assert noted(annotator)
    server.kill()
    assert not noted(annotator)
    assert set(annotator.stats.bypassed) == {"UnavailableError"}
    server.begin(artefacts)
    eventually(lambda: noted(annotator))


def test_a_server_that_is_killed_while_it_reads(server: SmallReplica) -> None:
    annotator = SAEAnnotator.from_url(server.url, deadline=PATIENCE, grace=None)
    assert noted(annotator)
    server.send(signal.SIGSTOP)  # so that the reading is under way for certain
    results: list[bool] = []
    thread = threading.Thread(target=lambda: results.append(noted(annotator)))
    thread.start()
    thread.join(0.2)
    assert thread.is_alive()
    server.kill()
    thread.join(PATIENCE)
    assert results == [False]
    assert set(annotator.stats.bypassed) == {"UnavailableError"}


def test_a_server_that_hangs_and_wakes_up(server: SmallReplica) -> None:
    annotator = SAEAnnotator.from_url(server.url, deadline=SHORT, grace=None)
    eventually(lambda: noted(annotator))
    annotator = SAEAnnotator.from_url(server.url, deadline=SHORT, grace=None)
    server.send(signal.SIGSTOP)
    assert not noted(annotator)
    assert set(annotator.stats.bypassed) == {"timeout"}
    server.send(signal.SIGCONT)
    eventually(lambda: noted(annotator))


class Gate:
    """A place that calls pass; when shut, they wait there, or until they are cancelled.

    Attributes:
        reached: set when a call has come.
        opened: whether calls pass.
    """

    def __init__(self) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()
        self.opened.set()

    def shut(self) -> None:
        self.reached.clear()
        self.opened.clear()

    def passing(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """A function of a worker thread that goes through the gate first."""

        def gated(*args: Any, **options: Any) -> Any:
            self.reached.set()
            assert self.opened.wait(PATIENCE)
            return call(*args, **options)

        return gated


class Listening:
    """The routes on a port of this process, with a gate before each phase of a reading."""

    def __init__(self, endpoint: SensecheckEndpoint, url: str) -> None:
        assert endpoint.service is not None
        self.service: ReadingService = endpoint.service
        self.port = int(url.rpartition(":")[2])
        self.url = url
        self.gates = {name: Gate() for name in ("plan", "read", "judge")}
        detector, reader = self.service.detector, self.service.reader
        detector.plan = self.gates["plan"].passing(detector.plan)  # type: ignore[method-assign]
        detector.reading = self.gates["judge"].passing(detector.reading)  # type: ignore[method-assign]
        reader._inspector.features = self.gates["read"].passing(reader._inspector.features)  # type: ignore[attr-defined]

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)

    def idle(self) -> bool:
        return self.service._running == 0


@pytest.fixture(scope="module")
def listening(tiny: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Listening]:
    from faults.making import make_artefacts

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SENSECHECK_HOME", str(cache))
        patch.setenv("SENSECHECK_SERVE_MODEL", str(tiny))
        artefacts = make_artefacts(tmp_path_factory.mktemp("listening") / "artefacts", tiny)
        patch.setenv("SENSECHECK_SERVE_ARTEFACTS", str(artefacts))
        endpoint = SensecheckEndpoint()
        engine = SimpleNamespace(model_config=SimpleNamespace(max_model_len=CONTEXT))
        config = uvicorn.Config(app_of(endpoint, engine), port=0, log_level="warning")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run)
        thread.start()
        eventually(lambda: server.started)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield Listening(endpoint, f"http://127.0.0.1:{port}")
        server.should_exit = True
        thread.join(PATIENCE)


def head(length: int = len(BODY), path: str = "/v1/sae/inspect") -> bytes:
    return (
        f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    ).encode()


def end_orderly(connection: socket.socket) -> None:
    connection.close()


def end_abruptly(connection: socket.socket) -> None:
    """Reset the connection, as a client does that is killed with unread bytes."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def in_the_head(server: Listening, connection: socket.socket) -> None:
    connection.sendall(head()[:40])


def before_the_body(server: Listening, connection: socket.socket) -> None:
    connection.sendall(head())


def in_the_body(server: Listening, connection: socket.socket) -> None:
    connection.sendall(head() + BODY[: len(BODY) // 2])


def at(name: str) -> Callable[[Listening, socket.socket], None]:
    def phase(server: Listening, connection: socket.socket) -> None:
        server.gates[name].shut()
        connection.sendall(head() + BODY)
        assert server.gates[name].reached.wait(PATIENCE)

    return phase


def in_the_answer(server: Listening, connection: socket.socket) -> None:
    connection.sendall(head() + BODY)
    assert connection.recv(20).startswith(b"HTTP/1.1 200")


PHASES = [
    pytest.param(in_the_head, id="in the head"),
    pytest.param(before_the_body, id="before the body"),
    pytest.param(in_the_body, id="in the body"),
    pytest.param(at("plan"), id="while the prompt is planned"),
    pytest.param(at("read"), id="while the model reads"),
    pytest.param(at("judge"), id="while the reading is judged"),
    pytest.param(in_the_answer, id="in the answer"),
]


@pytest.mark.parametrize("end", [end_orderly, end_abruptly])
@pytest.mark.parametrize("phase", PHASES)
def test_a_client_that_leaves_in_any_phase_costs_nobody_anything(
    listening: Listening, phase: Callable[[Listening, socket.socket], None], end: Callable[[socket.socket], None]
) -> None:
    threads = threading.active_count()
    for _ in range(3):
        connection = listening.connect()
        phase(listening, connection)
        end(connection)
        if phase is not in_the_head:
            eventually(listening.idle)  # its place is free although its phase has not ended
        for gate in listening.gates.values():
            gate.opened.set()
    annotator = SAEAnnotator.from_url(listening.url, deadline=PATIENCE, grace=None)
    assert noted(annotator)
    eventually(listening.idle)
    assert threading.active_count() <= threads + 4  # those of the pools, whose number is bounded


def test_many_clients_that_leave_at_once_leave_all_places_free(listening: Listening) -> None:
    """Four times as many as may be read at once, all gone while the first is planned."""
    listening.gates["plan"].shut()
    connections = [listening.connect() for _ in range(256)]
    for connection in connections:
        connection.sendall(head() + BODY)
    assert listening.gates["plan"].reached.wait(PATIENCE)
    for connection in connections:
        end_abruptly(connection)
    eventually(listening.idle)
    listening.gates["plan"].opened.set()
    assert noted(SAEAnnotator.from_url(listening.url, deadline=PATIENCE, grace=None))


class DeadEngineError(Exception):
    """As vLLM's own, when its engine is gone."""


class Engine:
    """vLLM's side of the way to its worker, which is another process."""

    def __init__(self) -> None:
        self.model_config = SimpleNamespace(max_model_len=CONTEXT)
        self.worker: BaseProcess | None = None
        self._pipe: Connection | None = None

    def begin(self, tiny: Path, artefacts: Path, channel: str) -> None:
        """Start a worker, in the place of one that is gone."""
        self._pipe, theirs = Pipe()
        self.worker = start(work, str(tiny), str(artefacts), channel, theirs, around=Surroundings())
        theirs.close()
        assert self._pipe.recv() == "ready"

    async def generate(self, prompt: Any, sampling: Any, **options: Any) -> AsyncIterator[Any]:
        assert self._pipe
        try:
            self._pipe.send((prompt["prompt_token_ids"], sampling.extra_args["kv_transfer_params"]))
            yield await asyncio.to_thread(self._pipe.recv)
        except (EOFError, OSError) as error:
            raise DeadEngineError from error


@contextmanager
def served_by(engine: Engine) -> Iterator[TestClient]:
    with TestClient(app_of(SensecheckEndpoint(), engine), raise_server_exceptions=False) as client:
        yield client


def test_a_worker_that_is_killed_while_it_reads(tiny: Path, artefacts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reading ends at once with an error, nothing waits for the dead, and the next worker is used as it comes."""
    channel = uuid.uuid4().hex
    settings = {"MODEL": str(tiny), "ARTEFACTS": str(artefacts), "CHANNEL": channel, "SAE": fingerprint_sae(artefacts)}
    for name, value in settings.items():
        monkeypatch.setenv(f"SENSECHECK_SERVE_{name}", value)
    engine = Engine()
    engine.begin(tiny, artefacts, channel)
    with served_by(engine) as client:

        def inspect() -> httpx.Response:
            return client.post("/v1/sae/inspect", json={"messages": MESSAGES})

        assert inspect().json()["misreads"][0]["note"] == "First."
        worker = engine.worker
        assert worker is not None and worker.pid is not None
        os.kill(worker.pid, signal.SIGSTOP)
        results: list[httpx.Response] = []
        thread = threading.Thread(target=lambda: results.append(inspect()))
        thread.start()
        eventually(lambda: client.get("/v1/sae/health").json()["waiting"] == 1)
        os.kill(worker.pid, signal.SIGKILL)
        thread.join(PATIENCE)
        assert results[0].status_code == 500
        assert inspect().status_code == 500
        health = client.get("/v1/sae/health").json()
        assert (health["waiting"], health["counters"]["failed"]) == (0, 2)
        worker.join()
        engine.begin(tiny, artefacts, channel)
        assert inspect().json()["misreads"][0]["note"] == "First."
    assert engine.worker is not None
    engine.worker.kill()
    engine.worker.join()
