"""The chat model behind the page."""

from __future__ import annotations

import asyncio

from langchain_openai import ChatOpenAI
from scripted_server import scripted_server

from ui.backend import Backend


async def talk(model: ChatOpenAI) -> str:
    return "".join([str(chunk.content) async for chunk in model.astream("Hello")])


def test_two_pages_of_one_server_share_no_connection():
    """Each page has an event loop of its own, to which its connections belong."""
    with scripted_server() as server, asyncio.Runner() as first, asyncio.Runner() as second:
        one, two = (Backend(server.url, "m").chat_model(max_tokens=4) for _ in range(2))
        answer = first.run(talk(one))
        assert answer
        assert second.run(talk(two)) == answer
        assert first.run(talk(one)) == answer
