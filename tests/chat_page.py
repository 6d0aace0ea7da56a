"""The chat page as a person uses it: what browser tests share."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

from playwright.sync_api import BrowserContext, Page, expect

from middleware import SAEAnnotator, ServerSource
from sae_runtime.detector.artefacts import Artefacts
from ui.backend import Backend
from ui.page.app import Door, build_page, start_page

_AXE = (files("axe_playwright_python") / "axe.min.js").read_text("utf-8")
SCREENSHOTS = Path(os.environ.get("SENSECHECK_SCREENSHOTS", "test-results/screenshots"))
_WATCH = """() => { window.wasBusy = false; new MutationObserver((_, watch) => {
  if (document.querySelector("#sc-prompt .stop-button")) { window.wasBusy = true; watch.disconnect(); }
}).observe(document.body, { childList: true, subtree: true }); }"""
SLOW = 120_000  # milliseconds that an answer may take on a busy machine

expect.set_options(timeout=30_000)


def serve_page(url: str, model: str, words: Path, tokens: int = 24) -> tuple[Any, str]:
    """The page in front of the server at ``url``, with answers of so many tokens: what to close, and its address."""
    annotator = SAEAnnotator(source=ServerSource(url, tokens=True), deadline=60, grace=None)
    page = build_page(annotator, Backend(url, model), Artefacts.open(model), overlays=words, max_tokens=tokens)
    return page, start_page(page, Door(0), block=False)


class Chat:
    """The page as a person uses it, and the addresses outside this machine that it asked for."""

    def __init__(self, context: BrowserContext, url: str) -> None:
        self.outside: list[str] = []
        self.left_the_machine: list[str] = []
        self.errors: list[str] = []
        self.page: Page = context.new_page()
        self.page.on("request", self._requested)
        self.page.on("requestfailed", self._refused)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(url)
        expect(self.box).to_be_visible()

    @property
    def box(self) -> Any:
        """The message box."""
        return self.page.locator("#sc-prompt textarea")

    @property
    def card(self) -> Any:
        """The card that is open."""
        return self.page.locator(".sc-card:not([hidden])")

    def ask(self, text: str, domain: str = "") -> None:
        """Send a message with the keyboard."""
        self.page.locator("#sc-domain input, #sc-domain textarea").fill(domain)
        self.box.fill(text)
        self.box.press("Enter")
        expect(self.box).to_have_value("")  # the page has taken it

    def answered(self, column: str = "#sc-chat") -> str:
        """The last answer of a column, when it is complete."""
        expect(self.page.locator(f"{column} .bot").last).not_to_have_text("…", timeout=SLOW)
        expect(self.page.get_by_role("button", name="Send", exact=True)).to_be_visible(timeout=SLOW)
        return self.page.locator(f"{column} .bot").last.inner_text()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """What is done inside begins a turn; afterwards its answer is complete, however fast it came."""
        self.page.evaluate(_WATCH)
        yield
        self.page.wait_for_function("window.wasBusy", timeout=SLOW)
        self.answered()

    def open(self, tab: str) -> None:
        """Go to a tab."""
        self.page.get_by_role("tab", name=tab).click()

    def violations(self) -> list[str]:
        """What axe finds on the page as it is (WCAG 2.2 A and AA, and best practices)."""
        self.page.evaluate(_AXE)
        found = self.page.evaluate("axe.run()")["violations"]
        return [f"{rule['id']}: {json.dumps([node['html'][:120] for node in rule['nodes'][:3]])}" for rule in found]

    def picture(self, name: str) -> None:
        """Keep a screenshot for people who look at the test run."""
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)

    def _refused(self, request: Any) -> None:
        """A request that the page's own policy stopped never left: ``csp`` is not the network's failure."""
        if "csp" not in (request.failure or "") and "://127.0.0.1" not in request.url:
            self.left_the_machine.append(f"{request.url}: {request.failure}")

    def _requested(self, request: Any) -> None:
        if request.url.startswith("http") and "://127.0.0.1" not in request.url:
            self.outside.append(request.url)
