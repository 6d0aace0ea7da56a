"""A real server on 127.0.0.1 that misbehaves on the wire in every way that a test plans."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PATIENCE = 30.0  # seconds; only a broken product waits that long
SHORT = 0.2  # seconds; a deadline that is meant to be missed
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
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.plan: list[Callable[[Handler], None]] = [fine]
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


class Handler(BaseHTTPRequestHandler):
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


def fine(handler: Handler) -> None:
    handler.answer(200, handler.server.good)


def body(content: bytes) -> Callable[[Handler], None]:
    """A success with another body."""
    return lambda handler: handler.answer(200, content)


def refusal(status: int, content: bytes = b'{"error": {"message": "No."}}') -> Callable[[Handler], None]:
    return lambda handler: handler.answer(status, content)


def held(handler: Handler) -> None:
    handler.server.ended.wait(PATIENCE)
    handler.close_connection = True


def trickling(handler: Handler) -> None:
    """A byte every 20 ms: no gap is long, the whole takes many seconds."""
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(handler.server.good)))
    handler.end_headers()
    for byte in handler.server.good:
        handler.wfile.write(bytes([byte]))
        if handler.server.ended.wait(0.02):
            return


def trickling_head(handler: Handler) -> None:
    """The same with the head of the answer, which then ends."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
    for number in range(25):
        handler.wfile.write(f"X-{number}: .\r\n".encode())
        handler.server.ended.wait(0.02)
    handler.wfile.write(f"Content-Length: {len(handler.server.good)}\r\n\r\n".encode() + handler.server.good)


def reset_in_the_body(handler: Handler) -> None:
    good = handler.server.good
    handler.answer(200, good[: len(good) // 2], said=len(good))
    handler.wfile.flush()
    handler.reset()


def ended_in_the_body(handler: Handler) -> None:
    good = handler.server.good
    handler.answer(200, good[: len(good) // 2], said=len(good))
    handler.close_connection = True


def closed_before_the_answer(handler: Handler) -> None:
    handler.close_connection = True


def reset_before_the_answer(handler: Handler) -> None:
    handler.reset()


def no_http(handler: Handler) -> None:
    handler.wfile.write(b"SSH-2.0-OpenSSH_9.6\r\n")
    handler.close_connection = True


def wrongly_packed(handler: Handler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Encoding", "gzip")
    handler.send_header("Content-Length", str(len(handler.server.good)))
    handler.end_headers()
    handler.wfile.write(handler.server.good)


def by_text(faults: dict[str, Callable[[Handler], None]]) -> Callable[[Handler], None]:
    """The fault whose name is in the prompt; none where there is no such name."""

    def chosen(handler: Handler) -> None:
        next((fault for name, fault in faults.items() if name in handler.last), fine)(handler)

    return chosen
