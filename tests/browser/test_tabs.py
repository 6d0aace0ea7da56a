"""Features and words: the tabs behind the chat."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from chat_page import SLOW, Chat
from playwright.sync_api import expect

from sae_runtime.detector import Inspector

pytestmark = [pytest.mark.browser, pytest.mark.server]


def test_a_card_leads_to_the_feature_that_decided(chat: Chat, flagged: tuple[str, str]) -> None:
    chat.ask(*flagged)
    expect(chat.card).to_be_visible(timeout=SLOW)
    chat.answered()
    chat.card.locator("summary").click()
    link = chat.card.locator("[data-feature]").first
    index = link.get_attribute("data-feature")
    link.click()
    expect(chat.page.locator("#sc-feature")).to_be_visible()
    expect(chat.page.locator("#sc-feature")).to_contain_text(f"Feature {index}")
    chat.picture("feature")


def test_features_are_found_by_number_and_by_word(chat: Chat, inspector: Inspector) -> None:
    index = sorted(inspector.view.features)[3]
    chat.open("Features")
    search = chat.page.locator("#sc-feature-search input, #sc-feature-search textarea")
    search.fill(str(index))
    search.press("Enter")
    hit = chat.page.locator(f"#sc-feature-hits [data-feature='{index}']").first
    expect(hit).to_be_visible()
    hit.click()
    expect(chat.page.locator("#sc-feature")).to_contain_text(f"Feature {index}")
    search.fill("bank")
    search.press("Enter")
    expect(chat.page.locator("#sc-feature-hits [data-feature]").nth(1)).to_be_visible()


def test_a_words_senses_and_sentences_are_shown(chat: Chat) -> None:
    chat.open("Words")
    chat.page.locator("#sc-concepts .search-input").fill("bank")
    chat.page.locator("#sc-concepts [role='gridcell'][data-col='0']", has_text="bank").first.click()
    expect(chat.page.locator("#sc-concept")).to_contain_text("river")
    expect(chat.page.locator("#sc-concept mark").first).to_be_visible()
    chat.picture("words")
    chat.page.locator("#sc-add-sense").click()
    expect(chat.page.locator("#sc-otherwise textarea")).to_have_value(re.compile("river|money"))


def test_ones_own_word_is_tried_saved_used_and_exported(chat: Chat, tmp_path: Path) -> None:
    chat.open("Words")
    chat.page.get_by_text("Add your own word").click()
    fields = {
        "#sc-term": "churn",
        "#sc-meaning": "customers who cancel their contract",
        "#sc-otherwise": "stirring milk to make butter",
        "#sc-term-examples": "The churn rose last quarter after the price change.\nOur churn is three percent a month.\n"
        "Which plan has the highest churn?",
        "#sc-term-counterexamples": "Grandmother filled the churn with cream.\nThe wooden churn stood in the dairy.\n"
        "He turned the handle of the churn until the butter came.",
        "#sc-try": "How do we reduce churn next year?\nThe churn is full of cream.",
    }
    for selector, text in fields.items():
        chat.page.locator(f"{selector} textarea, {selector} input").first.fill(text)
    chat.page.locator("#sc-try-run").click()
    expect(chat.page.locator("#sc-try-result tr")).to_have_count(3, timeout=SLOW)
    chat.picture("own-word")
    chat.page.locator("#sc-term-save").click()
    expect(chat.page.locator("#sc-own-terms")).to_contain_text("churn", timeout=SLOW)
    expect(chat.page.locator("#sc-try-result")).to_contain_text("holds from your next message on", timeout=SLOW)
    with chat.page.expect_download() as download:
        chat.page.locator("#sc-term-export").click()
    download.value.save_as(tmp_path / "glossary.yaml")
    assert "churn" in str(yaml.safe_load((tmp_path / "glossary.yaml").read_text("utf-8")))
    chat.open("Chat")
    chat.ask("How do we reduce churn next year?")
    word = chat.page.locator(".sc-word", has_text="churn")
    expect(word).to_be_visible(timeout=SLOW)
    word.click()
    expect(chat.card).to_contain_text("customers who cancel their contract")
    chat.answered()
