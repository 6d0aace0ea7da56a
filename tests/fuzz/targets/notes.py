"""A rendered note is one bounded, inert line that closes no frame; cleaning again changes nothing; what is added can be taken off."""

from __future__ import annotations

import re
import unicodedata

from hypothesis import strategies as st

from sae_runtime.detector.notes import (
    MAX_MENTION,
    MAX_NOTE,
    MAX_NOTES,
    MAX_NOTES_LENGTH,
    annotate_after,
    inert_note,
    joined_notes,
    render_note,
    sanitise,
)
from sae_runtime.detector.results import Misread

from ..texts import texts

Case = tuple[str, str, str, list[tuple[str, str]], list[str], int]

CASES: st.SearchStrategy[Case] = st.tuples(
    texts(),
    texts(),
    texts(),
    st.lists(st.tuples(st.sampled_from(["user", "assistant", "system", "tool", ""]), texts(2)), min_size=1, max_size=3),
    st.lists(texts(3), max_size=3),
    st.integers(1, 300),
)

_TOKEN = re.compile(r"<\|[^|<>]{0,40}\|>|</?s>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>|<\|?/?think\|?>", re.I)


def check(case: Case) -> None:
    """See the module."""
    before, mention, after, pairs, notes, limit = case
    note = render_note(before + "{mention}" + after, mention)
    _inert(note, MAX_NOTE)
    assert inert_note(note) == note, "making it inert again changes a note"
    assert "[" not in note and "]" not in note, "a bracket that opens or closes a frame"
    for text in (before, mention, before + mention + after):
        clean = sanitise(text, limit)
        _inert(clean, limit)
        assert sanitise(clean, limit) == clean, "cleaning again changes a clean text"
    plain = before + after
    if len(plain) < 100 and "{mention}" not in plain and not _TOKEN.search(before + mention + after):
        words = inert_note(sanitise(mention, MAX_MENTION))
        assert words in note or len(note) == MAX_NOTE or sanitise(plain, MAX_NOTE) != plain, (
            "the prompt's words are lost"
        )
    _taken_off(pairs, [note, *notes])


def _taken_off(pairs: list[tuple[str, str]], notes: list[str]) -> None:
    """Notes behind the last user text are where they are said to be, and without them the text is as it was."""
    messages = [{"role": role, "content": content} for role, content in pairs]
    copies = [dict(message) for message in messages]
    noted = annotate_after(messages, [_misread(note) for note in notes])
    assert messages == copies, "the input was changed"
    given = [place.note for place in noted.places]
    assert len(given) <= MAX_NOTES and sum(map(len, given)) <= MAX_NOTES_LENGTH
    assert len(set(given)) == len(given), "an equal note is given twice"
    for place in noted.places:
        assert noted.messages[place.message]["content"][place.start : place.end] == place.note
    changed = [index for index, pair in enumerate(zip(noted.messages, messages, strict=True)) if pair[0] != pair[1]]
    if not given:
        assert not changed
        return
    users = [index for index, message in enumerate(messages) if message["role"] == "user"]
    assert changed == [(users or [len(messages) - 1])[-1]], "another message was annotated"
    text = noted.messages[changed[0]]["content"]
    assert text == messages[changed[0]]["content"] + joined_notes(given), "more than a frame of notes was added"


def _misread(note: str) -> Misread:
    return Misread(
        concept="c", text="x", message=0, start=0, end=1, read_as="a", intended="b",
        p_read_as=0.9, p_intended=0.9, evidence=[], note=note, features=[],
    )  # fmt: skip


def _inert(line: str, limit: int) -> None:
    assert len(line) <= limit, f"longer than {limit}"
    assert len(line.splitlines()) <= 1, "several lines"
    assert line == " ".join(line.split()), "loose spaces"
    assert not any(unicodedata.category(char)[0] == "C" for char in line), "control or format characters"
    assert not _TOKEN.search(line), "a template token"
