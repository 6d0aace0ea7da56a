"""The key, where vLLM asks for none: it guards ``/v1`` and a few other prefixes, but ``/invocations`` answers chats, too."""

from __future__ import annotations

import os

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from vllm.entrypoints.serve.middleware.authenticate import AuthenticationMiddleware

OPEN_PATHS = frozenset({"/health", "/ping", "/metrics"})
"""Answered without the key: they tell probes and Prometheus that the server is up, and how much it did."""


class KeyGuard(AuthenticationMiddleware):
    """Asks for the key of ``VLLM_API_KEY`` on every path but :data:`OPEN_PATHS`, as vLLM itself does under ``/v1``.

    Named to vLLM with ``--middleware`` (:mod:`sae_runtime.serving.child`). Preflight requests of browsers (OPTIONS) carry
    no key and are not asked for one.
    """

    def __init__(self, app: ASGIApp) -> None:
        super().__init__(app, [os.environ["VLLM_API_KEY"]])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        if scope["type"] not in ("http", "websocket") or scope.get("method") == "OPTIONS":
            return await self.app(scope, receive, send)
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if path.rstrip("/") in OPEN_PATHS or self.verify_token(Headers(scope=scope)):
            return await self.app(scope, receive, send)
        if scope["type"] == "websocket":
            return await send({"type": "websocket.close", "code": 1008})
        return await JSONResponse({"error": "Unauthorized"}, status_code=401)(scope, receive, send)
