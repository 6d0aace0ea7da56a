"""The real page on the real served model, in Debian's Chromium; every test has a browser session of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from chat_page import Chat, serve_page
from playwright.sync_api import Browser, BrowserContext, sync_playwright

from sae_runtime.detector import Inspector
from sae_runtime.evaluation.prompts import calibration_prompts
from sae_runtime.serving import ModelServer

_CHROMIUM = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
             "--disable-component-update", "--disable-sync"]  # fmt: skip


@pytest.fixture(scope="session")
def chat_url(server: ModelServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    yield from _served(server, tmp_path_factory.mktemp("words"))


@pytest.fixture(scope="session")
def long_answers_url(server: ModelServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The same page with answers that last some seconds, so that something can be done meanwhile."""
    yield from _served(server, tmp_path_factory.mktemp("words"), tokens=96)


@pytest.fixture(scope="session")
def endless_answers_url(server: ModelServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The same page with answers that end when they are stopped, however slow the machine."""
    yield from _served(server, tmp_path_factory.mktemp("words"), tokens=768)


def _served(server: ModelServer, words: Path, **length: int) -> Iterator[str]:
    """The address of the page in front of ``server``, until it is done with; ``length`` as ``tokens`` of ``serve_page``."""
    page, url = serve_page(server.url, server.model, words, **length)
    yield url
    page.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One per module: while Playwright runs it holds this thread's event loop, which later asynchronous tests need."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=_CHROMIUM)
        yield browser
        browser.close()


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    context = browser.new_context(viewport={"width": 1440, "height": 900}, color_scheme="light")
    yield context
    context.close()


@pytest.fixture
def chat(context: BrowserContext, request: pytest.FixtureRequest) -> Chat:
    marked = (name for name in ("long_answers", "endless_answers") if request.node.get_closest_marker(name))
    return Chat(context, request.getfixturevalue(f"{next(marked, 'chat')}_url"))


@pytest.fixture(scope="session")
def flagged(inspector: Inspector) -> tuple[str, str]:
    """A calibration prompt with its domain that the shipped catalog flags."""
    for item in calibration_prompts():
        if item.domain and inspector.inspect([{"role": "user", "content": item.prompt}], domain=item.domain).misreads:
            return item.prompt, item.domain
    raise AssertionError("no calibration prompt is flagged")
