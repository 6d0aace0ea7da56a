"""What the server takes at most, whatever way a conversation comes to be read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sae_runtime.engines.chat import ChatMessage
from sae_runtime.errors import InputError

MAX_MESSAGES = 256
MAX_CHARACTERS = 400_000
"""Of one conversation."""
MAX_BODY = 16 * 2**20
"""Bytes of a request to our routes. JSON may take twelve for one character (an escaped surrogate pair)."""
PLAN_SECONDS = 2.0
"""How long a chat completion's answer waits for its mentions to be found; then it begins unread."""

Slug = Annotated[str, Field(max_length=128)]
"""Name of a concept or sense; a glossary's are the longest, with up to 69 characters."""
_OURS = "/v1/sae/"


def check_size(messages: Sequence[ChatMessage]) -> None:
    """Refuse a conversation of more than :data:`MAX_MESSAGES` messages or :data:`MAX_CHARACTERS` characters.

    Raises:
        InputError: it is.
    """
    if len(messages) > MAX_MESSAGES:
        raise InputError(f"The conversation has more than {MAX_MESSAGES} messages.", "Leave out older ones.")
    if sum(len(message["content"]) for message in messages) > MAX_CHARACTERS:
        raise InputError(f"The conversation is longer than {MAX_CHARACTERS} characters.", "Leave out older messages.")


class BodyLimit:
    """Stops reading a request to ``/v1/sae/`` at :data:`MAX_BODY` bytes, with status 413; other routes are vLLM's."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with a counting ``receive``."""
        if scope["type"] != "http" or not scope["path"].removeprefix(scope.get("root_path", "")).startswith(_OURS):
            return await self.app(scope, receive, send)
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > MAX_BODY:
                raise HTTPException(413, f"The request is longer than {MAX_BODY} bytes.")
            return message

        return await self.app(scope, counted, send)
