"""A process that answers like ``sensecheck serve``, without a model: for programs that send traffic to servers.

Tests import this module by name: pytest puts the folder of ``tests/conftest.py`` on the import path. As a script it is the server.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from loopback import free_port

_PATIENCE = 60.0  # seconds
MISREAD = "crane"
"""A prompt with this word is flagged."""


@dataclass(frozen=True)
class Script:
    """How the server behaves.

    Attributes:
        pause: seconds before each of the four tokens of an answer.
        refuse: every so-manieth chat completion of a conversation with a system message gets status 500; 0: none.
        unread: every so-manieth one-call completion is answered unread; 0: none.
        cut: answers end before they are complete.
    """

    pause: float = 0.0
    refuse: int = 0
    unread: int = 0
    cut: bool = False


class ScriptedServer:
    """A running one; has what programs use of a :class:`~sae_runtime.serving.ModelServer`."""

    def __init__(self, process: subprocess.Popen[bytes], url: str) -> None:
        self.process, self.url = process, url

    def seen(self) -> list[dict[str, Any]]:
        """The bodies of all requests for readings and answers."""
        return httpx.get(f"{self.url}/seen", timeout=_PATIENCE).json()

    def __enter__(self) -> ScriptedServer:
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.kill()
        self.process.wait()


@contextmanager
def scripted_server(script: Script | None = None) -> Iterator[ScriptedServer]:
    """Start one in a session of its own, as model servers are, and wait until it answers."""
    port = free_port()
    command = [sys.executable, __file__, str(port), json.dumps(asdict(script or Script()))]
    with ScriptedServer(subprocess.Popen(command, start_new_session=True), f"http://127.0.0.1:{port}") as server:
        end = time.monotonic() + _PATIENCE
        while True:
            with contextlib.suppress(httpx.HTTPError):
                httpx.get(f"{server.url}/seen", timeout=_PATIENCE)
                break
            assert server.process.poll() is None and time.monotonic() < end, "the scripted server does not answer"
            time.sleep(0.05)
        yield server


def app_of(script: Script) -> FastAPI:
    """The routes."""
    app, seen = FastAPI(), list[dict[str, Any]]()
    counts = {"chats": 0, "one call": 0}

    def due(kind: str, every: int) -> bool:
        counts[kind] += 1
        return bool(every) and counts[kind] % every == 0

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Any:
        body = await request.json()
        seen.append(body)
        if body["messages"][0]["role"] == "system" and due("chats", script.refuse):
            return JSONResponse({"error": {"message": "refused"}}, status_code=500)
        report = None
        if body.get("sensecheck"):
            unread = due("one call", script.unread)
            flagged = not unread and MISREAD in body["messages"][-1]["content"]
            report = {"flagged": flagged, "notes": [], "misreads": [], "bypassed": "timeout" if unread else None}

        async def stream() -> AsyncIterator[str]:
            for word in ("A ", "short ", "answer", "."):
                await asyncio.sleep(script.pause)
                yield _chunk({"choices": [{"index": 0, "delta": {"content": word}}]})
            if script.cut:
                return
            if report is not None:
                yield _chunk({"choices": [], "sensecheck": report})
            yield "data: [DONE]\n\n"

        return StreamingResponse(stream(), media_type="text/event-stream")

    @app.post("/v1/sae/inspect")
    async def inspect(request: Request) -> Any:
        body = await request.json()
        seen.append(body)
        return {"model": "scripted", "mentions": [], "misreads": [], "tokens": [], "truncated": False,
                "timings_ms": {"features": 1.0}, "annotated_messages": body["messages"]}  # fmt: skip

    @app.get("/v1/sae/health")
    async def health() -> Any:
        return {"status": "ok", "waiting": 0}

    @app.get("/v1/sae/features/{index}")
    async def feature(index: int) -> Any:
        return {"index": index}

    @app.get("/metrics")
    async def metrics() -> Any:
        number = counts["one call"]
        lines = [f'sensecheck_inspection_duration_seconds_bucket{{le="{le}",route="one_call"}} {number}'
                 for le in ("0.1", "+Inf")]  # fmt: skip
        return PlainTextResponse("\n".join(["# TYPE sensecheck_inspection_duration_seconds histogram", *lines, ""]))

    @app.get("/seen")
    async def requests() -> Any:
        return seen

    return app


def _chunk(content: dict[str, Any]) -> str:
    return f"data: {json.dumps({'id': 'x', 'object': 'chat.completion.chunk', **content})}\n\n"


if __name__ == "__main__":
    uvicorn.run(app_of(Script(**json.loads(sys.argv[2]))), port=int(sys.argv[1]), log_level="error")
