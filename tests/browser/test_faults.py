"""The model server goes away and comes back; several people use the page at once; nobody else reaches it."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import psutil
import pytest
from chat_page import SLOW, Chat, serve_page
from playwright.sync_api import Browser, BrowserContext, expect

from sae_runtime.serving import ModelServer

pytestmark = [pytest.mark.browser, pytest.mark.server]


class Line:
    """A TCP line to the model server that can be cut and mended."""

    def __init__(self, port: int) -> None:
        self.target = port
        self.whole = True
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Drop all connections, and refuse new ones."""
        self.whole = False
        for connection in list(self._open):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        """Let new connections through."""
        self.whole = True

    def close(self) -> None:
        """Stop listening."""
        self.cut()
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                if not self.whole:
                    near.close()
                    continue
                far = socket.create_connection(("127.0.0.1", self.target))
                self._open |= {near, far}
                for source, target in ((near, far), (far, near)):
                    threading.Thread(target=self._pump, args=(source, target), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def line(server: ModelServer) -> Iterator[Line]:
    line = Line(int(server.url.rpartition(":")[2]))
    yield line
    line.close()


def test_a_lost_server_is_said_and_the_message_survives(
    context: BrowserContext, server: ModelServer, line: Line, tmp_path: Path
) -> None:
    page, url = serve_page(f"http://127.0.0.1:{line.port}", server.model, tmp_path)
    try:
        chat = Chat(context, url)
        chat.ask("Name a colour.")
        first = chat.answered()
        line.cut()
        chat.ask("Name a fruit.")
        expect(chat.page.locator("#sc-chat .bot").last).to_contain_text("does not answer", timeout=SLOW)
        expect(chat.page.locator(".sc-state.sc-bypass")).to_be_visible()
        chat.picture("server-lost")
        line.mend()
        chat.page.locator("#sc-chat").get_by_role("button", name="Retry").last.click()
        expect(chat.page.locator("#sc-chat .bot").last).not_to_contain_text("does not answer", timeout=SLOW)
        chat.answered()
        expect(chat.page.locator("#sc-chat .user")).to_have_count(2)
        expect(chat.page.locator("#sc-chat .bot").first).to_contain_text(first.split()[0])
    finally:
        page.close()


def test_two_people_at_once_see_only_their_own_conversation(browser: Browser, chat_url: str) -> None:
    contexts = [browser.new_context() for _ in range(2)]
    chats = [Chat(context, chat_url) for context in contexts]
    for chat, word in zip(chats, ("apple", "violin"), strict=True):
        chat.ask(f"Say something about the {word}.")
    for chat, own, other in zip(chats, ("apple", "violin"), ("violin", "apple"), strict=True):
        expect(chat.page.locator("#sc-chat .bot").last).to_contain_text(re.compile(r"\w{2,}"), timeout=SLOW)
        chat.answered()
        expect(chat.page.locator("#sc-chat .user")).to_have_count(1)
        expect(chat.page.locator(".sc-tokens")).to_contain_text(own)
        assert other not in chat.page.locator("#sc-chat .user").inner_text()
    for context in contexts:
        context.close()


def test_only_loopback_is_served(chat_url: str) -> None:
    port = httpx.URL(chat_url).port
    listening = [c.laddr for c in psutil.Process().net_connections("inet") if c.status == psutil.CONN_LISTEN]
    assert {address.ip for address in listening if address.port == port} == {"127.0.0.1"}
