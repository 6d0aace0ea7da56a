"""Notes are one short line of inert text, whatever the catalog and the prompt hold."""

from __future__ import annotations

import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sae_runtime.detector.notes import MAX_MENTION, MAX_NOTE, render_note, sanitise

_TOKENS = ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<s>", "</s>", "[INST]", "[/INST]", "<<SYS>>", "<</SYS>>",
           "<start_of_turn>", "<end_of_turn>", "<think>", "</think>")  # fmt: skip
_INVISIBLE = ("\u200b", "\u200d", "\u00ad", "\ufeff", "\u202e", "\x00", "\x1b", "\x7f", "\ue000")
_FRAGMENTS = ("<", ">", "|", "[", "]", "/", "<|", "|>", "im_end", "im_start", "s", "INST", "SYS", "think", "_of_turn",
              "start", "end")  # fmt: skip
hostile = st.lists(
    st.sampled_from(_TOKENS + _FRAGMENTS + _INVISIBLE + ("\n", "\t", "\u2028", " ")) | st.text(max_size=5), max_size=30
).map("".join)


def assert_inert(line: str, limit: int) -> None:
    assert len(line) <= limit
    assert len(line.splitlines()) <= 1
    assert line == " ".join(line.split())
    assert [char for char in line if unicodedata.category(char).startswith("C")] == []
    assert [token for token in _TOKENS if token.lower() in line.lower()] == []
    assert re.search(r"<\|[^|<>]{0,40}\|>", line) is None


@given(hostile, st.integers(10, 300))
def test_sanitised_text_is_one_bounded_inert_line(text: str, limit: int) -> None:
    assert_inert(sanitise(text, limit), limit)


@given(hostile, hostile, hostile)
def test_a_rendered_note_is_one_bounded_inert_line(before: str, mention: str, after: str) -> None:
    assert_inert(render_note(before + "{mention}" + after, mention), MAX_NOTE)


@given(st.sampled_from(_TOKENS), st.sampled_from(_TOKENS), st.data())
def test_tokens_nested_in_tokens_do_not_come_back(outer: str, inner: str, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(outer)))
    assert_inert(sanitise(outer[:at] + inner + outer[at:], 60), 60)


@given(st.sampled_from(_TOKENS), st.sampled_from(_INVISIBLE), st.data())
def test_tokens_split_by_invisible_characters_do_not_come_back(token: str, invisible: str, data: st.DataObject) -> None:
    at = data.draw(st.integers(1, len(token) - 1))
    assert_inert(sanitise(token[:at] + invisible + token[at:], 60), 60)


def test_a_token_padded_with_invisible_characters_does_not_come_back() -> None:
    assert_inert(sanitise("<|im_end" + "\u200b" * 50 + "|>", 60), 60)


@pytest.mark.parametrize("text", ["<|im_<|x|>end|>", "<|<|im_end|>im_end|>", "<<s>s>", "[IN[INST]ST]", "<th<|a|>ink>"])
def test_known_nestings_are_removed(text: str) -> None:
    assert_inert(sanitise(text, 60), 60)


@given(hostile, st.integers(10, 300))
def test_sanitising_twice_changes_nothing(text: str, limit: int) -> None:
    once = sanitise(text, limit)
    assert sanitise(once, limit) == once


@given(st.text(st.characters(categories=("L", "N")), min_size=1, max_size=9), st.integers(10, 60))
def test_ordinary_words_stay_as_they_are(word: str, limit: int) -> None:
    assert sanitise(word, limit) == word
    assert sanitise(f"  {word}\n\t{word} ", 60) == f"{word} {word}"


def test_cut_text_ends_with_an_ellipsis() -> None:
    assert sanitise("one two three", 8) == "one two…"
    assert sanitise("x" * 500, 240) == "x" * 239 + "…"


def test_the_mention_replaces_the_placeholder_once_and_is_capped() -> None:
    assert render_note('Here "{mention}" means x.', "The\nBank") == 'Here "The Bank" means x.'
    assert render_note('Here "{mention}" means x.', "{mention}") == 'Here "{mention}" means x.'
    assert render_note("{mention}", "y" * 100) == "y" * (MAX_MENTION - 1) + "…"


def test_comparison_signs_and_brackets_in_plain_prose_survive() -> None:
    text = "if a < b and c > d then [x] | <b>"
    assert sanitise(text, 60) == text
    assert re.search(r"[<>\[\]|]", sanitise(text, 60))
