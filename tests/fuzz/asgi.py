"""Asking an application without a socket, in one event loop for the whole process."""

from __future__ import annotations

import asyncio
import atexit
from functools import cache
from typing import Any

import httpx


@cache
def _runner() -> asyncio.Runner:
    runner = asyncio.Runner()
    atexit.register(runner.close)
    return runner


def ask(app: Any, method: str, url: str, **request: Any) -> httpx.Response:
    """The whole response; an exception of the application is a status 500, as behind a socket."""

    async def call() -> httpx.Response:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            return await client.request(method, url, **request)

    return _runner().run(call())
