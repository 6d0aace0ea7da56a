"""What our routes answer when they do not do what was asked, for their OpenAPI description."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel


class RefusalDetail(BaseModel):
    """Why: a sentence for people, ``sensecheck`` or vLLM's own kind, and the HTTP status."""

    message: str
    type: str
    code: int


class Refusal(BaseModel):
    """The body of an answer that is no success, in the shape of OpenAI's and vLLM's."""

    error: RefusalDetail


class PlainRefusal(BaseModel):
    """The body when the request was given up before our code or vLLM's saw it: too long, or not to be parsed."""

    detail: str


_WHY = {
    400: "The request is no JSON, or a field of it is wrong.",
    404: "There is no such thing.",
    413: "It is longer than the server takes.",
    422: "It cannot be read: there is no text, or it names what does not exist.",
    500: "The reading failed.",
    503: "The server is starting, or busy: ask again after `Retry-After` seconds.",
}
_PLAIN = (400, 413)


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """FastAPI's ``responses`` for a route that may answer with ``statuses``."""
    return {
        status: {"model": Refusal | PlainRefusal if status in _PLAIN else Refusal, "description": _WHY[status]}
        for status in statuses
    }
