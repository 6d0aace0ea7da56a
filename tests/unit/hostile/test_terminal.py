"""Answers, prompts and catalogs cannot steer the terminal on which ``sensecheck ask`` shows them."""

from __future__ import annotations

import json
import unicodedata
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.messages import HumanMessage

from middleware import Annotated, MentionReading, Misread, Reading
from sae_runtime.detector.results import FeatureActivation, Imitation
from ui.cli.ask import _report, _show
from ui.cli.terminal import visible, visible_json

LIGHT = settings(max_examples=200, deadline=None, derandomize=True, database=None)
# Clears the screen, sets the title, hides text, a C1 control sequence, backspaces, and turns the direction.
EVIL = "a\x1b[2J\x1b]0;title\x07\x1b[8mhidden\x9b2K\b\b\r\x7f\x00\u202egnp.exe[bold red]"
STEERING = {chr(code) for code in (*range(0x20), *range(0x7F, 0xA0))} - {"\n", "\t"} | set(
    "\u202a\u202b\u202d\u202e\u2066\u2067"
)
hostile = st.text(st.sampled_from(sorted(STEERING)) | st.characters(exclude_categories=["Cs"]), max_size=40)


@LIGHT
@given(hostile)
def test_nothing_that_steers_is_left_and_every_character_keeps_its_place(text: str) -> None:
    shown = visible(text)
    assert len(shown) == len(text)
    assert not set(shown) & STEERING
    assert all(new == old or unicodedata.category(old) in ("Cc", "Cf") for new, old in zip(shown, text, strict=True))
    assert visible(shown) == shown


@LIGHT
@given(hostile)
def test_json_keeps_its_value(text: str) -> None:
    written = visible_json(json.dumps({text: [text]}, ensure_ascii=False, indent=1))
    assert not set(written) & STEERING
    assert json.loads(written) == {text: [text]}


def test_what_people_write_stays() -> None:
    for text in ("naïve — “quotes”\n\tCafé", "👩‍👩‍👧 किताब", "שלום עולם", "مرحبا"):
        assert visible(text) == text
    assert visible("\x1b[1m\x7f\x9b") == "␛[1m␡\ufffd"


def annotated() -> Annotated:
    place: dict[str, Any] = {"concept": EVIL, "text": EVIL, "message": 0, "start": 0, "end": 4}
    feature = FeatureActivation(index=1, label=EVIL, activation=1.0)
    misread = Misread(**place, read_as=EVIL, intended=EVIL, p_read_as=0.9, p_intended=0.9, evidence=[EVIL], note=EVIL,
                      features=[feature])  # fmt: skip
    mention = MentionReading(**place, reading={EVIL: 1.0}, intended={EVIL: 1.0})
    imitation = Imitation(message=0, start=0, end=2)
    reading = Reading(model="m", mentions=[mention], misreads=[misread], tokens=[], truncated=True, mentions_left_out=7,
                      imitations=[imitation])  # fmt: skip
    return Annotated([HumanMessage(EVIL)], [EVIL], reading, None, [], 3)


def test_ask_shows_control_characters_instead_of_sending_them(capsys: pytest.CaptureFixture[str]) -> None:
    result = annotated()
    report = _report(EVIL, result) | {"answer": EVIL, "plain_answer": EVIL}
    _show(report, result)
    shown = capsys.readouterr().out
    assert not set(shown) & STEERING
    assert shown.count("␛[2J") >= 9  # prompt, mention, misread, evidence, feature, note, both answers, ...
    assert "[bold red]" in shown  # no markup either
    for line in ("3 more notes are left out", "looks like a note", "7 more mentions are not read"):
        assert line in shown


def test_the_json_of_ask_has_them_escaped() -> None:
    report = _report(EVIL, annotated()) | {"answer": EVIL}
    written = visible_json(json.dumps(report, ensure_ascii=False))
    assert not set(written) & STEERING
    assert json.loads(written)["answer"] == EVIL
    assert json.loads(written)["imitations"] == [{"message": 0, "start": 0, "end": 2}]
