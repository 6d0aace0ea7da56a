"""Readings over HTTP, against a small real server on 127.0.0.1."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from langchain_core.messages import HumanMessage
from loopback import on_a_thread

from middleware import InspectionRequest, InspectionSource, SAEAnnotator, ServerSource
from sae_runtime.catalog.view import CatalogView
from sae_runtime.errors import FingerprintError, InputError, InspectionTimeout, SensecheckError, ServerError
from sae_runtime.models.manifest import SMALL_MODEL
from sae_runtime.paths import CATALOG_FILE, artefacts_for
from sae_runtime.serving.plugin import InspectRequest

Call = Callable[..., Any]

PATIENCE = 30.0  # seconds; only a broken product waits that long
TEXT = "I sat on the bänk 🏞️."
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": TEXT}]


class TinyServer(ThreadingHTTPServer):
    """Answers every POST alike, and every GET with ``fingerprints``.

    Attributes:
        status, body: the answer.
        requests: path, headers and JSON body of every request.
        hold: when True, a request is answered only at the end of the test.
        pieces: the body is sent in so many pieces, 50 ms apart.
        hang_up: when True, the connection is closed without an answer.
    """

    daemon_threads = False  # closing the server waits for its threads

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.status, self.body = 200, b"{}"
        self.requests: list[tuple[str, dict[str, str], Any]] = []
        self.hold = self.hang_up = False
        self.pieces = 1
        self.fingerprints: dict[str, str] = {}
        self.health_requests = 0
        self.ended = threading.Event()


class _Handler(BaseHTTPRequestHandler):
    server: TinyServer

    def do_GET(self) -> None:
        self.server.health_requests += 1
        answer = json.dumps({"status": "ok", "fingerprints": self.server.fingerprints}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.requests.append((self.path, headers, json.loads(body)))
        if self.server.hold:
            self.server.ended.wait(PATIENCE)
        if self.server.hang_up:
            return
        answer = self.server.body
        size = len(answer) // self.server.pieces + 1
        with contextlib.suppress(OSError):  # the client may have given up
            self.send_response(self.server.status)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            for start in range(0, len(answer), size):
                if start:
                    self.server.ended.wait(0.05)
                self.wfile.write(answer[start : start + size])
                self.wfile.flush()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture
def server(reading_of: Any, misread_at: Any) -> Iterator[TinyServer]:
    with TinyServer() as server:
        reading = reading_of([misread_at(TEXT, 13, 17, note="A note.")])
        server.body = reading.model_dump_json().encode()
        with on_a_thread(server):
            yield server
            server.ended.set()


@pytest.fixture
def open_source() -> Iterator[Callable[..., ServerSource]]:
    """Makes sources and closes their connections at the end."""
    with contextlib.ExitStack() as stack:

        def make(url: str, **options: Any) -> ServerSource:
            source = ServerSource(url, **options)
            stack.callback(source.close)
            return source

        yield make


@pytest.fixture
def source(server: TinyServer, open_source: Callable[..., ServerSource]) -> ServerSource:
    return open_source(server.url)


def read(call: Call, source: ServerSource, deadline: float = PATIENCE, messages: Any = MESSAGES) -> Any:
    return call(source, "inspect", InspectionRequest(messages, [1], domain="rivers"), deadline=deadline)


def test_a_reading_is_asked_for_and_parsed(server: TinyServer, source: ServerSource, call: Call) -> None:
    reading = read(call, source)
    assert reading.model_dump_json().encode() == server.body
    ((path, headers, body),) = server.requests
    assert path == "/v1/sae/inspect"
    assert body == {"messages": MESSAGES, "domain": "rivers", "read": [1], "tokens": False}
    assert headers["content-type"] == "application/json"
    assert InspectRequest.model_validate(body).model_dump(exclude_unset=True) == body


def test_it_is_an_inspection_source_and_can_be_used_again(source: ServerSource, server: TinyServer, call: Call) -> None:
    assert isinstance(source, InspectionSource)
    assert read(call, source) == read(call, source)
    assert len(server.requests) == 2


def test_the_key_is_sent_as_a_bearer_token(server: TinyServer, open_source: Any, call: Call) -> None:
    read(call, open_source(server.url, api_key="s3cret"))
    read(call, open_source(server.url))
    assert [headers.get("authorization") for _, headers, _ in server.requests] == ["Bearer s3cret", None]


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/"])
def test_the_url_may_end_in_v1(server: TinyServer, open_source: Any, call: Call, suffix: str) -> None:
    read(call, open_source(server.url + suffix))
    assert server.requests[0][0] == "/v1/sae/inspect"


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_refused_prompt_is_an_input_error(server: TinyServer, source: ServerSource, call: Call, status: int) -> None:
    server.status, server.body = status, b'{"error": {"message": "The prompt is empty."}}'
    with pytest.raises(InputError, match=rf"answered {status}: The prompt is empty\.") as caught:
        read(call, source)
    assert caught.value.remedy


@pytest.mark.parametrize("status", [301, 401, 403, 404, 429, 500, 502, 503])
def test_any_other_refusal_is_a_server_error(server: TinyServer, source: ServerSource, call: Call, status: int) -> None:
    server.status, server.body = status, b'{"error": {"message": "No."}}'
    with pytest.raises(ServerError, match=rf"answered {status}: No\.") as caught:
        read(call, source)
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("body", "shown"),
    [(b'{"detail": "too long"}', "too long"), (b"<html>Bad gateway</html>", "Bad gateway"), (b"[1]", "1"),
     (b'{"error": "plain"}', "plain"), (b"x" * 5000, "x" * 200)],
    ids=["detail", "html", "list", "error-str", "long"],
)  # fmt: skip
def test_a_refusal_of_another_shape_is_shown_shortened(
    server: TinyServer, source: ServerSource, call: Call, body: bytes, shown: str
) -> None:
    server.status, server.body = 502, body
    with pytest.raises(ServerError) as caught:
        read(call, source)
    assert shown in caught.value.message
    assert len(caught.value.message) < 300


@pytest.mark.parametrize("status", [200, 502])
def test_an_answer_that_is_nested_without_end_is_a_server_error(
    server: TinyServer, source: ServerSource, call: Call, status: int
) -> None:
    """Found by fuzzing: Python's JSON reader raises a RecursionError."""
    server.status, server.body = status, b"[" * 100_000
    with pytest.raises(ServerError):
        read(call, source)


def test_a_health_answer_that_is_nested_without_end_is_a_server_error(open_source: Any) -> None:
    source = open_source("http://127.0.0.1:1")
    source._expected = SimpleNamespace(fingerprints={"sae": "s"})
    with pytest.raises(ServerError, match="does not say"):
        source._check(httpx.Response(200, content=b"[" * 100_000))


@pytest.mark.parametrize("body", [b"<html>Log in</html>", b"", b"[]", b'{"model": "m"}', b"\xff"],
                         ids=["html", "empty", "list", "half", "bytes"])  # fmt: skip
def test_a_success_that_is_no_reading_is_a_server_error(
    server: TinyServer, source: ServerSource, call: Call, body: bytes
) -> None:
    server.body = body
    with pytest.raises(ServerError):
        read(call, source)


def test_a_refused_connection_is_a_server_error_with_a_remedy(open_source: Any, call: Call) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # bound, but nobody listens
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(ServerError) as caught:
            read(call, open_source(url))
    assert url in caught.value.message
    assert "sensecheck serve" in caught.value.remedy


def test_an_address_without_scheme_is_a_server_error(open_source: Any, call: Call) -> None:
    with pytest.raises(ServerError, match="localhost:8000"):
        read(call, open_source("localhost:8000"))


def test_a_dropped_connection_is_a_server_error(server: TinyServer, source: ServerSource, call: Call) -> None:
    server.hang_up = True
    with pytest.raises(ServerError, match="No reading from"):
        read(call, source)


def test_a_silent_server_is_an_inspection_timeout(server: TinyServer, source: ServerSource, call: Call) -> None:
    server.hold = True
    with pytest.raises(InspectionTimeout, match=r"longer than 0\.1 s"):
        read(call, source, deadline=0.1)


def test_the_deadline_is_one_for_the_whole_answer(server: TinyServer, source: ServerSource, call: Call) -> None:
    server.pieces = 20  # about a second, no gap longer than 50 ms
    with pytest.raises(InspectionTimeout):
        read(call, source, deadline=0.2)


def test_text_that_is_no_unicode_is_the_callers_fault(source: ServerSource, call: Call) -> None:
    with pytest.raises(SensecheckError) as caught:  # half of an emoji, as cut by a careless client
        read(call, source, messages=[MESSAGES[0], {"role": "user", "content": "bank \ud83c"}])
    assert isinstance(caught.value, InputError)


def test_a_server_with_the_same_artefacts_is_checked_once(server: TinyServer, open_source: Any, call: Call) -> None:
    folder = artefacts_for(SMALL_MODEL)
    view = CatalogView.load(folder / CATALOG_FILE)
    server.fingerprints = {**view.model.model_dump(), "sae": view.sae_fingerprint}
    source = open_source(server.url, artefacts=folder)
    assert read(call, source) == read(call, source)
    assert server.health_requests == 1


def test_a_server_with_other_artefacts_is_refused(server: TinyServer, open_source: Any, call: Call) -> None:
    folder = artefacts_for(SMALL_MODEL)
    view = CatalogView.load(folder / CATALOG_FILE)
    server.fingerprints = {**view.model.model_dump(), "sae": "0" * 16}
    source = open_source(server.url, artefacts=folder)
    for _ in range(2):
        with pytest.raises(FingerprintError, match="sae differ"):
            read(call, source)
    assert server.requests == []


async def test_asynchronous_calls_share_their_connections(server: TinyServer, source: ServerSource) -> None:
    for _ in range(3):
        await source.ainspect(InspectionRequest(MESSAGES, [1]), deadline=PATIENCE)
    assert len(source._clients) == 1
    await source.aclose()
    assert len(source._clients) == 0


def test_from_url_annotates_through_the_server(server: TinyServer, call: Call) -> None:
    annotator = SAEAnnotator.from_url(server.url, api_key="s3cret", deadline=PATIENCE, domain="rivers")
    with contextlib.closing(annotator.source):  # type: ignore[attr-defined]
        assert call(annotator, "invoke", TEXT) == [HumanMessage(f"{TEXT}\n\n[Note on the wording above: A note.]")]
    assert server.requests[0][2] == {"messages": MESSAGES[1:], "domain": "rivers", "read": [0], "tokens": False}
    assert "s3cret" not in repr(annotator)
