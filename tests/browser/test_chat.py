"""The chat: what a person sees when they ask, and what they can do about it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from chat_page import SLOW, Chat
from playwright.sync_api import expect

pytestmark = [pytest.mark.browser, pytest.mark.server]


def test_a_first_visit_says_what_the_page_does_and_an_example_shows_it(chat: Chat) -> None:
    expect(chat.page.locator("#sc-reading")).to_contain_text("your words appear here as it read")
    chat.picture("first-visit")
    chat.page.get_by_role("button", name="scales (in music)").click()
    expect(chat.page.locator("#sc-chat .user").first).to_contain_text("make my scales")
    expect(chat.page.locator(".sc-word").first).to_be_visible(timeout=SLOW)
    assert chat.answered()


def test_a_flagged_prompt_shows_reading_note_and_both_answers(chat: Chat, flagged: tuple[str, str]) -> None:
    chat.ask(*flagged)
    expect(chat.card).to_be_visible(timeout=SLOW)
    expect(chat.page.locator(".sc-word.sc-flagged").first).to_be_visible()
    note = chat.page.locator("#sc-note li").first.inner_text()
    assert note in chat.card.inner_text()
    noted, plain = chat.answered("#sc-chat"), chat.answered("#sc-twin")
    assert re.search(r"\w{2,}", noted)
    assert re.search(r"\w{2,}", plain)
    expect(chat.page.locator("#sc-totals")).to_contain_text("1 of 1")
    added = re.search(r"tokens added by notes\s*(\d+)", chat.page.locator("#sc-totals").inner_text())
    assert added
    assert 5 < int(added[1]) < 80
    assert chat.outside == []
    assert chat.errors == []
    chat.picture("flagged-prompt")


def test_an_unremarkable_prompt_is_quiet(chat: Chat) -> None:
    chat.ask("What is the capital of France?")
    expect(chat.page.locator(".sc-state.sc-quiet")).to_contain_text("Nothing to note", timeout=SLOW)
    expect(chat.page.locator("#sc-note")).to_contain_text("No note was added")
    assert chat.answered("#sc-chat") == chat.answered("#sc-twin")
    chat.picture("quiet")


def test_cards_open_by_mouse_and_by_keyboard(chat: Chat, flagged: tuple[str, str]) -> None:
    chat.ask(*flagged)
    word = chat.page.locator(".sc-word.sc-flagged").first
    expect(word).to_have_attribute("aria-expanded", "true", timeout=SLOW)
    chat.answered()
    chat.page.keyboard.press("Escape")  # nothing in the pane has the focus yet
    word.focus()
    chat.page.keyboard.press("Escape")
    expect(chat.card).to_have_count(0)
    chat.page.keyboard.press("ArrowLeft")
    tip = chat.page.locator(".sc-tip")
    expect(tip).to_contain_text(re.compile(r"\(\d|no catalogued"))
    chat.page.keyboard.press("ArrowRight")
    expect(chat.card).to_be_visible()
    chat.page.keyboard.press("Escape")
    expect(chat.card).to_have_count(0)
    word.hover()
    expect(chat.card).to_be_visible()
    chat.card.locator("summary").click()
    expect(chat.card.locator(".sc-deciding > li").first).to_contain_text("activation")


def test_a_dropped_note_is_gone_and_the_answer_is_made_anew(chat: Chat, flagged: tuple[str, str]) -> None:
    chat.ask(*flagged)
    expect(chat.card).to_be_visible(timeout=SLOW)
    plain = chat.answered("#sc-twin")
    chat.card.get_by_role("button", name="Drop this note").click()
    expect(chat.page.locator("#sc-note")).to_contain_text("No note was added", timeout=SLOW)
    assert chat.answered("#sc-chat") == plain  # greedy: the untouched prompt has the same answer
    expect(chat.page.locator("#sc-chat .user")).to_have_count(1)


@pytest.mark.long_answers
def test_a_choice_while_the_answers_still_come_wins(chat: Chat, flagged: tuple[str, str]) -> None:
    chat.ask(*flagged)
    expect(chat.card).to_be_visible(timeout=SLOW)
    chat.card.get_by_role("button", name="Drop this note").click()
    expect(chat.page.locator("#sc-note")).to_contain_text("No note was added", timeout=SLOW)
    dropped = chat.page.locator("#sc-reading").get_by_role("button", name="Undo my choice")
    expect(dropped).to_be_visible()
    chat.answered()
    chat.page.wait_for_timeout(1000)
    expect(chat.page.locator("#sc-note")).to_contain_text("No note was added")  # the first turn has not come back
    expect(chat.page.locator("#sc-chat .user")).to_have_count(1)
    dropped.click()
    expect(chat.card).to_be_visible(timeout=SLOW)
    chat.answered()


@pytest.mark.endless_answers
def test_clearing_while_an_answer_comes_leaves_an_empty_page(chat: Chat) -> None:
    chat.ask("Write a long story about a lighthouse.")
    expect(chat.page.locator("#sc-chat .bot").last).to_contain_text(re.compile(r"\w{2,}"), timeout=SLOW)
    chat.page.locator("#sc-clear").click()
    expect(chat.page.locator("#sc-chat .user")).to_have_count(0)
    chat.page.wait_for_timeout(1500)
    expect(chat.page.locator("#sc-chat .user")).to_have_count(0)
    expect(chat.page.get_by_role("button", name="Send", exact=True)).to_be_visible()


def test_an_answer_that_was_not_asked_for_is_not_made_up(chat: Chat, flagged: tuple[str, str]) -> None:
    chat.page.get_by_label("Show the answer without notes, too").uncheck()
    chat.ask(*flagged)
    expect(chat.card).to_be_visible(timeout=SLOW)
    chat.answered()
    expect(chat.page.locator("#sc-twin")).to_be_hidden()
    chat.page.get_by_label("Show the answer without notes, too").check()
    expect(chat.page.locator("#sc-twin .bot")).to_contain_text("not asked for")


def test_an_earlier_message_shows_how_it_was_read(chat: Chat, flagged: tuple[str, str]) -> None:
    chat.ask(*flagged)
    expect(chat.card).to_be_visible(timeout=SLOW)
    chat.answered()
    chat.ask("Name a colour.")
    chat.answered()
    expect(chat.card).to_have_count(0)
    chat.page.locator("#sc-chat .user [data-testid]").first.press("Enter")
    expect(chat.card).to_be_visible()
    chat.card.get_by_role("button", name="Drop this note").click()
    expect(chat.page.locator("#sc-chat .user")).to_have_count(1, timeout=SLOW)  # what came after it goes
    chat.answered()


def test_another_sense_can_be_picked_and_the_choice_undone(chat: Chat) -> None:
    chat.ask("We sat on the grassy bank of the river and watched the water. What could we do next?")
    word = chat.page.locator(".sc-word", has_text="bank").first
    expect(word).to_be_visible(timeout=SLOW)
    chat.answered()
    word.click()
    chat.card.locator("select").select_option("finance")
    chat.card.get_by_role("button", name="Use", exact=True).click()
    expect(chat.page.locator("#sc-note li")).to_contain_text("bank", timeout=SLOW)
    expect(chat.card).to_contain_text("your choice")
    chat.answered()
    chat.card.get_by_role("button", name="Undo my choice").click()
    expect(chat.page.locator("#sc-note")).to_contain_text("No note was added", timeout=SLOW)
    chat.answered()


def test_a_note_can_be_made_to_hold_for_the_whole_conversation(chat: Chat, flagged: tuple[str, str]) -> None:
    chat.ask(*flagged)
    expect(chat.card).to_be_visible(timeout=SLOW)
    chat.answered()
    word = chat.page.locator(".sc-word.sc-flagged").first.inner_text().replace("(noted)", "").strip()
    chat.card.get_by_role("button", name="Always note this here").click()
    expect(chat.card).to_contain_text("as you chose", timeout=SLOW)
    chat.answered()
    chat.ask(f"Tell me about the {word}.")
    expect(chat.page.locator("#sc-chat .user")).to_have_count(2)
    expect(chat.page.locator("#sc-note li")).to_contain_text(word, timeout=SLOW)
    chat.answered()


def test_messages_can_be_edited_and_answers_retried(chat: Chat) -> None:
    chat.ask("Name a colour.")
    first = chat.answered()
    with chat.turn():
        chat.page.locator("#sc-chat").get_by_role("button", name="Retry").click()
    assert chat.answered() == first  # greedy
    chat.page.locator("#sc-chat").get_by_role("button", name="Edit").first.click()
    chat.page.get_by_label("Your message, edited").fill("Name a fruit.")
    chat.page.locator("#sc-chat").get_by_role("button", name="Submit").click()
    expect(chat.page.locator("#sc-chat .user")).to_have_count(1)
    expect(chat.page.locator("#sc-twin .user")).to_contain_text("Name a fruit.")
    chat.answered()


@pytest.mark.endless_answers
def test_an_answer_can_be_stopped(chat: Chat) -> None:
    chat.ask("Write a very long story about a lighthouse keeper and everything that happened in ten years.")
    expect(chat.page.locator("#sc-chat .bot").last).to_contain_text(re.compile(r"\w{2,}"), timeout=SLOW)
    chat.page.get_by_role("button", name="Stop", exact=True).click()
    expect(chat.page.get_by_role("button", name="Send", exact=True)).to_be_visible()
    length = len(chat.page.locator("#sc-chat .bot").last.inner_text())
    chat.page.wait_for_timeout(2000)
    assert len(chat.page.locator("#sc-chat .bot").last.inner_text()) - length < 40  # what was on its way
    chat.ask("And in one word?")
    expect(chat.page.locator("#sc-chat .bot")).to_have_count(2, timeout=SLOW)
    expect(chat.page.locator("#sc-chat .bot").last).to_contain_text(re.compile(r"\w{2,}"), timeout=SLOW)


def test_a_message_sent_right_after_clearing_is_kept(chat: Chat) -> None:
    chat.ask("Name a colour.")
    chat.answered()
    chat.page.locator("#sc-clear").click()
    chat.ask("Which bank is nearest?")
    expect(chat.page.locator(".sc-tokens")).to_contain_text("Which bank", timeout=SLOW)
    expect(chat.page.locator("#sc-chat .user").last).to_contain_text("Which bank")
    chat.answered()


@pytest.mark.endless_answers
def test_what_is_typed_while_an_answer_comes_stays(chat: Chat) -> None:
    chat.ask("Write a long story about a lighthouse.")
    expect(chat.page.locator("#sc-chat .bot").last).to_contain_text(re.compile(r"\w{2,}"), timeout=SLOW)
    chat.box.fill("My next thought")
    chat.page.wait_for_timeout(1500)
    assert chat.box.input_value() == "My next thought"
    chat.page.get_by_role("button", name="Stop", exact=True).click()


def test_markup_in_a_prompt_is_shown_not_run(chat: Chat) -> None:
    chat.ask('<img src=x onerror="window.hacked=1"> ![x](http://example.invalid/x.png) Which bank is nearest?')
    expect(chat.page.locator(".sc-tokens")).to_contain_text("onerror", timeout=SLOW)
    chat.answered()
    assert chat.page.evaluate("window.hacked") is None
    assert chat.left_the_machine == []


@pytest.mark.parametrize("name", ["Save as JSON", "Save as page"])
def test_the_conversation_can_be_saved(chat: Chat, flagged: tuple[str, str], tmp_path: Path, name: str) -> None:
    chat.ask(*flagged)
    expect(chat.card).to_be_visible(timeout=SLOW)
    answer = chat.answered()
    note = chat.page.locator("#sc-note li").first.inner_text()
    with chat.page.expect_download() as download:
        chat.page.get_by_role("button", name=name).click()
    file = tmp_path / "file"
    download.value.save_as(file)
    text = file.read_text("utf-8")
    if name.endswith("JSON"):
        (exchange,) = json.loads(text)["exchanges"]
        assert exchange["prompt"] == flagged[0]
        assert exchange["notes"] == [note]
        assert exchange["reading"]["misreads"]
        assert exchange["answer_with_notes"].split()[:3] == answer.split()[:3]
    else:
        assert "http" not in re.sub(r"http-equiv", "", text)
        outside: list[str] = []
        chat.page.on("request", lambda request: outside.append(request.url))
        chat.page.set_content(text)
        expect(chat.page.get_by_role("heading", level=1)).to_contain_text("read a conversation")
        assert outside == []
