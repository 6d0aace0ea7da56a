"""The reading as HTML and as files: complete, escaped, and with buttons that say what they do."""

from __future__ import annotations

import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from middleware import Annotated, MentionReading, Misread, Reading
from sae_runtime.catalog.view import CatalogView
from sae_runtime.detector.results import FeatureActivation, TokenReading
from sae_runtime.paths import CATALOG_FILE, artefacts_for
from ui.chat.conversation import Choices, Conversation, Exchange
from ui.chat.export import as_json, as_page
from ui.chat.lookup import Lookup
from ui.chat.render import figures_html, note_html, reading_html

EVIL = "<script>alert(1)</script>"
TEXT = f"my mouse {EVIL}"


@pytest.fixture(scope="module")
def lookup() -> Lookup:
    folder = artefacts_for("smollm2-135m-instruct")
    return Lookup(CatalogView.load(folder / CATALOG_FILE), folder / CATALOG_FILE)


def exchange(*, flagged: bool = True, choices: Choices | None = None) -> Exchange:
    place = {"concept": "mouse", "text": "mouse", "message": 0, "start": 3, "end": 8}
    index = 4
    feature = FeatureActivation(index=index, label=EVIL, activation=2.0)
    misread = Misread.model_validate(
        {**place, "read_as": "device", "intended": "animal", "p_read_as": 0.9, "p_intended": 0.97,
         "evidence": [EVIL], "note": f"Here {EVIL}", "features": [feature]}
    )  # fmt: skip
    mention = MentionReading.model_validate(
        {**place, "reading": {"device": 0.9, "animal": 0.1}, "intended": {"device": 0.03, "animal": 0.97}}
    )
    spans = [("my", 0, 2), (" mouse", 2, 8), (f" {EVIL}", 8, len(TEXT))]
    tokens = [TokenReading(text=t, message=0, start=a, end=b, features=[feature]) for t, a, b in spans]
    reading = Reading(
        model="m", mentions=[mention], misreads=[misread] * flagged, tokens=tokens, truncated=False,
        timings_ms={"total": 12.0},
    )  # fmt: skip
    notes = [misread.note] * flagged
    return Exchange(TEXT, "", choices or Choices(), Annotated([], notes, reading, None), EVIL, EVIL, 40)


class Tags(HTMLParser):
    """All start tags with their attributes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def actions(self) -> set[str | None]:
        return {attrs["data-action"] for _, attrs in self.tags if "data-action" in attrs}


def test_a_first_impression_has_a_column_where_the_flag_rests_on_it(lookup: Lookup) -> None:
    one = exchange()
    assert "at first" not in reading_html(one, lookup)
    reading = one.annotated.reading  # type: ignore[union-attr]
    assert reading is not None
    mention = reading.mentions[0].model_copy(update={"early": {"device": 0.64, "animal": 0.36}})
    misread = reading.misreads[0].model_copy(update={"early": True})
    early = reading.model_copy(update={"mentions": [mention], "misreads": [misread]})
    html = reading_html(replace(one, annotated=Annotated([], [misread.note], early, None)), lookup)
    assert "probably misread at first" in html
    assert "the model read at first" in html
    assert "64%" in html


@pytest.mark.parametrize("flagged", [True, False])
def test_nothing_of_prompt_or_catalog_becomes_markup(lookup: Lookup, flagged: bool) -> None:
    one = exchange(flagged=flagged)
    talk = Conversation((one,))
    pages = (reading_html(one, lookup), note_html(one.annotated), figures_html(talk), as_page(talk, EVIL, lookup))
    for html in pages:
        assert "script" not in {tag for tag, _ in Tags(html).tags}


def test_a_flagged_word_is_a_button_for_its_open_card(lookup: Lookup) -> None:
    html = reading_html(exchange(), lookup)
    (word,) = [attrs for tag, attrs in Tags(html).tags if tag == "button" and "aria-expanded" in attrs]
    assert (word["aria-expanded"], word["aria-controls"]) == ("true", "sc-card-0")
    (card,) = [attrs for _, attrs in Tags(html).tags if attrs.get("id") == "sc-card-0"]
    assert "hidden" not in card
    assert "a small rodent" in html
    assert Tags(html).actions() == {"drop", "always", "use"}


def test_a_quiet_word_has_a_closed_card_on_which_a_sense_can_be_picked(lookup: Lookup) -> None:
    html = reading_html(exchange(flagged=False), lookup)
    (card,) = [attrs for _, attrs in Tags(html).tags if attrs.get("id") == "sc-card-0"]
    assert "hidden" in card
    assert Tags(html).actions() == {"use"}


def test_a_picked_sense_can_be_undone(lookup: Lookup) -> None:
    html = reading_html(exchange(), lookup, 0, Choices({"mouse": "animal"}))
    assert "forget" in Tags(html).actions()
    assert "as you chose" in html


def test_a_word_that_is_left_alone_has_no_card_and_its_choice_can_be_undone(lookup: Lookup) -> None:
    one = exchange(flagged=False)
    assert one.annotated and one.annotated.reading
    unread = replace(one.annotated, reading=one.annotated.reading.model_copy(update={"mentions": []}))
    html = reading_html(replace(one, annotated=unread), lookup, 3, Choices(dropped=frozenset({"mouse"})))
    assert Tags(html).actions() == {"forget"}
    assert 'data-turn="3"' in html


def test_states_without_a_reading_say_so(lookup: Lookup) -> None:
    assert "appear here" in reading_html(None, lookup)
    assert "Reading your words" in reading_html(Exchange("x"), lookup)
    assert "timeout" in reading_html(Exchange("x", annotated=Annotated([], [], None, "timeout")), lookup)


def test_figures_count_flags_bypasses_and_tokens() -> None:
    bypassed = Exchange("x", annotated=Annotated([], [], None, "timeout"))
    html = figures_html(Conversation((exchange(), exchange(flagged=False), bypassed)))
    for part in ("12 ms", "1 of 3", "<dd>1</dd>", "<dd>37</dd>"):  # 40 tokens sent, 3 read
        assert part in html


def test_a_saved_conversation_holds_everything(lookup: Lookup, tmp_path: Path) -> None:
    talk = Conversation((exchange(choices=Choices({"mouse": "animal"})),), Choices(dropped=frozenset({"bass"})))
    data = json.loads(as_json(talk, "m"))
    (row,) = data["exchanges"]
    assert data["always"]["dropped"] == ["bass"]
    assert row["choices"]["picks"] == {"mouse": "animal"}
    assert Reading.model_validate(row["reading"]) == talk.exchanges[0].annotated.reading  # type: ignore[union-attr]
    assert row["tokens_added"] == 37
    page = as_page(talk, "m", lookup)
    assert "a small rodent" in page
    assert "src=" not in page
