"""Everyone can use the page: keyboard, screen reader, phone, dark mode; and nothing jumps about."""

from __future__ import annotations

import pytest
from chat_page import SLOW, Chat
from playwright.sync_api import Browser, expect

pytestmark = [pytest.mark.browser, pytest.mark.server]
_SHIFTS = """() => { window.shift = 0; new PerformanceObserver((list) => list.getEntries().forEach((e) => {
  if (!e.hadRecentInput) window.shift += e.value; })).observe({ type: "layout-shift", buffered: false }); }"""


@pytest.mark.parametrize(("width", "scheme"), [(1440, "light"), (1440, "dark"), (390, "light"), (390, "dark")])
def test_no_rule_of_axe_is_broken_and_the_page_fits(
    browser: Browser, chat_url: str, flagged: tuple[str, str], width: int, scheme: str
) -> None:
    context = browser.new_context(viewport={"width": width, "height": 850}, color_scheme=scheme)  # type: ignore[arg-type]
    chat = Chat(context, chat_url)
    assert chat.violations() == []
    chat.ask(*flagged)
    expect(chat.card).to_be_visible(timeout=SLOW)
    chat.answered()
    for tab in ("Chat", "Features", "Words"):
        chat.open(tab)
        chat.page.wait_for_timeout(500)  # the tab's fade
        assert chat.violations() == [], tab
        assert chat.page.evaluate("document.documentElement.scrollWidth") <= width, tab
        chat.picture(f"{tab.lower()}-{width}-{scheme}")
    assert chat.outside == []
    context.close()


def test_everything_is_reached_with_the_tab_key(chat: Chat, flagged: tuple[str, str]) -> None:
    chat.ask(*flagged)
    expect(chat.card).to_be_visible(timeout=SLOW)
    chat.answered()
    chat.box.focus()
    reached = set()
    for _ in range(40):
        chat.page.keyboard.press("Tab")
        reached.add(
            chat.page.evaluate(
                "document.activeElement.innerText || document.activeElement.getAttribute('aria-label') || ''"
            )
        )
    for name in ("New conversation", "Save as JSON", "Drop this note", "Use"):
        assert name in reached
    assert any(text.endswith("(noted)") for text in reached)


def test_what_happens_is_announced(chat: Chat, flagged: tuple[str, str]) -> None:
    chat.ask(*flagged)
    expect(chat.page.get_by_role("status").filter(has_text="noted")).to_be_visible(timeout=SLOW)
    expect(chat.page.get_by_role("log").first).to_be_visible()
    chat.answered()


@pytest.mark.long_answers
def test_nothing_moves_while_an_answer_comes(chat: Chat) -> None:
    chat.ask("Name a colour.")
    chat.answered()
    chat.ask("Write a long story about a lighthouse keeper.")
    expect(chat.page.locator(".sc-state.sc-quiet")).to_be_visible(timeout=SLOW)
    chat.page.evaluate(_SHIFTS)
    chat.answered()
    assert chat.page.evaluate("window.shift") < 0.05  # "good" is 0.1 (web.dev/cls)
