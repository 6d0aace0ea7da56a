"""One pass through the chat in Debian's Chromium, on the real served model."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator

import httpx
import pytest
from playwright.sync_api import Page, expect, sync_playwright

from middleware import SAEAnnotator, ServerSource
from ui.backend import Backend
from ui.chat.app import build_page, start_page

pytestmark = [pytest.mark.browser, pytest.mark.server]
_CHROMIUM = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
             "--disable-component-update", "--disable-sync"]  # fmt: skip


@pytest.fixture(scope="module")
def chat_url(server) -> Iterator[str]:
    annotator = SAEAnnotator(source=ServerSource(server.url, tokens=True), deadline=60)
    page = build_page(annotator, Backend(server.url, server.model))
    url = start_page(page, port=0, block=False)
    yield url
    page.close()


@pytest.fixture(scope="module")
def browser_page(chat_url) -> Iterator[tuple[Page, list[str]]]:
    """A page and the list of requests that left the machine (there must be none)."""
    outside: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=_CHROMIUM)
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        page.on(
            "request",
            lambda r: outside.append(r.url) if "127.0.0.1" not in r.url and r.url.startswith("http") else None,
        )
        page.goto(chat_url)
        yield page, outside
        browser.close()


def ask(page: Page, text: str, domain: str = "") -> None:
    page.locator("#sc-domain input, #sc-domain textarea").fill(domain)
    box = page.locator("#sc-prompt textarea")
    box.fill(text)
    box.press("Enter")


def test_a_flagged_prompt_shows_reading_note_and_both_answers(browser_page, inspector):
    page, outside = browser_page
    prompt, domain = flagged_prompt(inspector)
    ask(page, prompt, domain)
    expect(page.locator(".sc-card").first).to_be_visible(timeout=60_000)
    expect(page.locator(".sc-token.sc-flagged").first).to_be_visible()
    note = page.locator("#sc-note li").first.inner_text()
    assert note in page.locator(".sc-card").first.inner_text()
    expect(page.locator("#sc-twin")).to_be_visible()
    for answer in ("#sc-chat .bot", "#sc-twin .bot"):
        expect(page.locator(answer).first).to_contain_text(re.compile(r"\w{2,}"), timeout=120_000)
    assert outside == []


def test_markup_in_a_prompt_is_shown_not_run(browser_page):
    page, _ = browser_page
    page.locator("#sc-clear").click()
    ask(page, '<img src=x onerror="window.hacked=1"> Which bank is nearest?')
    expect(page.locator(".sc-state")).to_be_visible(timeout=60_000)
    expect(page.locator(".sc-tokens")).to_contain_text("onerror")
    assert page.evaluate("window.hacked") is None


def test_the_page_fits_a_phone(browser_page):
    page, _ = browser_page
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_only_loopback_is_served(chat_url):
    assert httpx.get(chat_url).is_success
    assert chat_url.startswith("http://127.0.0.1:")
    assert threading.active_count() > 1


def flagged_prompt(inspector) -> tuple[str, str]:
    """A calibration prompt that the shipped catalog flags."""
    from sae_runtime.evaluation.prompts import calibration_prompts

    for item in calibration_prompts():
        if item.domain and inspector.inspect([{"role": "user", "content": item.prompt}], domain=item.domain).misreads:
            return item.prompt, item.domain
    raise AssertionError("no calibration prompt is flagged")
