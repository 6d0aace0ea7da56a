"""The catalog tab without a browser: table, concept pane, and one's own words from the form to the chat."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import gradio as gr
import pytest

from middleware import SAEAnnotator
from middleware.sources import InspectionRequest
from middleware.testing import FakeInspector
from sae_runtime.catalog.browse import SenseSummary, sense_rows
from sae_runtime.detector.results import MentionReading, Misread, Reading
from sae_runtime.errors import InputError, UnavailableError
from sae_runtime.glossary import Glossary, Term
from sae_runtime.paths import CATALOG_FILE, artefacts_for
from ui.markup import marked
from ui.words import tab
from ui.words.overlay import Overlay
from ui.words.own_words import MAX_TRIED, OwnWords, term_from
from ui.words.render import DATATYPES, HEADERS, UNTRIED, concept_html, frame_value, own_terms_html
from ui.words.tab import WordsTab, concept_detail, sense_form, words_tab

CATALOG = artefacts_for("smollm2-135m-instruct") / CATALOG_FILE
EVIL = '<img src=x onerror="alert(1)">'
FORM = ("churn, churned", "customers who leave", "stirring milk", "Our churn fell.", "Churn the milk.", "")
T = TypeVar("T")


class TermInspector(FakeInspector):
    """Reads every term of the request's glossary as meant, and flags it beside the word "milk"."""

    def inspect(self, request: InspectionRequest, *, deadline: float) -> Reading:
        found = super().inspect(request, deadline=deadline)
        mentions, misreads = [], []
        for term in request.glossary.terms if request.glossary else []:
            text = request.messages[0]["content"]
            if (place := term.mention(text)) is None:
                continue
            wrong = "milk" in text
            meant = 0.03 if wrong else 0.97
            where: dict[str, Any] = {
                "concept": term.slug, "text": text[slice(*place)], "message": 0, "start": place[0], "end": place[1],
            }  # fmt: skip
            mentions.append(
                MentionReading(**where, reading={"meant": meant, "otherwise": 1 - meant}, intended={"meant": 1.0})
            )
            if wrong:
                misreads.append(
                    Misread(**where, read_as="otherwise", intended="meant", p_read_as=0.97, p_intended=0.98,
                            evidence=["glossary"], note=term.note_text, features=[])
                )  # fmt: skip
        return found.model_copy(update={"mentions": mentions, "misreads": misreads})


def request_of(user: str | None) -> gr.Request:
    return gr.Request(username=user)


@pytest.fixture
def source() -> TermInspector:
    return TermInspector()


@pytest.fixture
def words(source: TermInspector, tmp_path: Path) -> OwnWords:
    return OwnWords(SAEAnnotator(source=source), tmp_path / "own")


async def last(steps: AsyncIterator[T]) -> T:
    """What the page shows in the end."""
    return [step async for step in steps][-1]


# The table and the concept pane.


@pytest.fixture(scope="module")
def rows() -> list[SenseSummary]:
    return sense_rows(CATALOG)


def test_the_table_has_a_row_for_each_sense_of_the_shipped_catalog(rows: list[SenseSummary]) -> None:
    value = frame_value(rows)
    assert len(value["data"]) == len(rows) > 100
    assert {len(row) for row in value["data"]} == {len(HEADERS)} == {len(DATATYPES)}
    assert {row[0] for row in value["data"]} == {row.concept for row in rows} >= {"bank", "apple"}
    assert all(row[6] >= 3 for row in value["data"])  # contexts


def test_numbers_are_sorted_as_numbers_and_shown_in_words(rows: list[SenseSummary]) -> None:
    measured = replace(
        rows[0], read_accuracy=0.975, lift=-0.5, lift_low=-0.75, lift_high=-0.25, harm=0.125, enabled=False
    )
    value = frame_value([measured, replace(rows[0], lift=None, harm=None)])
    assert value["data"][0][3:6] == [0.975, -0.5, 0.125]
    first, second = value["metadata"]["display_value"]
    assert first[3:6] == ["98%", "-0.50 (-0.75 to -0.25)", "12%"]
    assert first[-1].endswith("(switched off)")
    assert second[4:6] == [UNTRIED, UNTRIED]


def test_the_chosen_concept_shows_all_senses_with_marked_contexts(rows: list[SenseSummary]) -> None:
    html = concept_detail(CATALOG, rows, "bank")
    senses = [row for row in rows if row.concept == "bank"]
    assert html.count("<article") == len(senses) > 1
    assert html.count("<mark>") == 4 * len(senses)
    assert all(row.sense in html for row in senses)
    assert "{mention}" not in html


def test_every_concept_of_the_shipped_catalog_can_be_shown(rows: list[SenseSummary]) -> None:
    for row in rows:
        assert "sc-sense" in concept_html([row], {row.sense: [("a word", 2, 6)]})


def test_measured_figures_are_said_in_words(rows: list[SenseSummary]) -> None:
    row = replace(
        rows[0], text_accuracy=0.8, lift=0.42, lift_low=0.31, lift_high=0.53, accuracy_lift=0.05, harm=0.02, trials=40
    )
    html = concept_html([row], {})
    assert "by +0.42 nats, 95% interval (+0.31 to +0.53)" in html
    assert "accuracy by +5 percentage points; 2% are right without it and wrong with it (40 sentences)" in html
    assert "alone tell it in 80%" in html
    assert UNTRIED in concept_html([replace(rows[0], lift=None)], {})
    assert "never flagged" in concept_html([replace(rows[0], enabled=False)], {})


def test_an_unknown_concept_is_a_hint_and_is_not_echoed(rows: list[SenseSummary]) -> None:
    html = concept_detail(CATALOG, rows, EVIL)
    assert "no such concept" in html and "img" not in html


def test_catalog_text_is_escaped(rows: list[SenseSummary]) -> None:
    evil = replace(
        rows[0], concept=EVIL, sense=EVIL, gloss=EVIL, pack=EVIL, forms=(EVIL,), note="{mention}" + EVIL, wording=EVIL
    )
    html = concept_html([evil], {EVIL: [(EVIL + "bank", len(EVIL), len(EVIL) + 4)]})
    assert "<img" not in html
    assert "<mark>bank</mark>" in html
    assert marked("a<b>c", 1, 4) == "a<mark>&lt;b&gt;</mark>c"


# The form.


def test_a_filled_form_is_a_term() -> None:
    term = term_from(
        " churn, churned ,", " leaving ", "butter\n\n milk", "a churn\n b churned", "churn it", "{mention}!"
    )
    assert term == Term(
        term="churn", forms=["churned"], meaning="leaving", otherwise=["butter", "milk"],
        examples=["a churn", "b churned"], counterexamples=["churn it"], note="{mention}!",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "said", "remedy"),
    [
        (("", "m" * 5, "x" * 5, "", "", ""), "The word: write at least 2 characters", "Change the form"),
        (("churn", "", "milk", "", "", ""), "What it means for you: write at least 2 characters", "Change the form"),
        (("churn", "leaving", "", "", "", ""), "Nothing says what “churn” is mistaken for", "Name the other meaning"),
        (("churn", "leaving", "milk", "We churned.", "", ""), "does not occur in its example", "behind commas"),
        (("churn", "leaving", "milk", "", "Milk.", ""), "does not occur in its counterexample", "behind commas"),
        (("churn", "leaving", "milk", "", "", "n" * 241), "The note: write at most 240 characters", "Change the form"),
        (("churn", "leaving", "milk\n" * 9, "", "", ""), "What it is mistaken for: give at most 8", "Change the form"),
        (("churn\ud800", "leaving", "milk", "", "", ""), "The word: ", "Change the form"),
    ],
)
def test_a_bad_form_says_what_is_wrong_in_its_own_words(fields: tuple[str, ...], said: str, remedy: str) -> None:
    with pytest.raises(InputError) as caught:
        term_from(*fields)
    assert said in caught.value.message
    assert remedy in caught.value.remedy


# Trying.


async def test_sentences_are_read_with_the_word_alone(words: OwnWords, source: TermInspector) -> None:
    html = await last(words.tried("Our churn is low.\nThe churn is full of milk.\nNothing here.", *FORM))
    assert "Our <mark>churn</mark> is low.</td><td>as you mean it (97%)</td><td>not flagged</td>" in html
    assert "<td>otherwise (97%)</td>" in html and "⚑ flagged" in html
    assert "&quot;{mention}&quot;" in html  # the fake renders no notes
    assert "Nothing here.</td><td" in html and "does not occur here" in html
    term = term_from(*FORM)
    assert [request.glossary for request in source.requests] == [Glossary(terms=[term])] * 4  # compiled first
    assert not words.folder.exists()  # trying keeps nothing


async def test_trying_ignores_what_the_chats_annotator_leaves_out(source: TermInspector, tmp_path: Path) -> None:
    annotator = SAEAnnotator(source=source, only=frozenset({"bank"}), without=frozenset({"glossary:churn"}))
    await last(OwnWords(annotator, tmp_path).tried("The churn.", *FORM))
    assert {(request.only, request.without) for request in source.requests} == {(None, frozenset())}


async def test_few_sentences_bring_advice_and_enough_do_not(words: OwnWords) -> None:
    assert "three or more" in await last(words.tried("The churn.", *FORM))
    many = ("churn", "leaving", "milk", "A churn.\nB churn.\nC churn.", "D churn.\nE churn.\nF churn.", "")
    assert "three or more" not in await last(words.tried("The churn.", *many))


async def test_tried_text_is_escaped(words: OwnWords) -> None:
    form = ("churn", EVIL, EVIL, "", "", "{mention} " + EVIL)
    assert "<img" not in await last(words.tried(f"{EVIL} churn of milk", *form))
    assert "<img" not in await last(words.tried("churn", EVIL * 9, *form[1:]))


@pytest.mark.parametrize(
    ("sentences", "said"),
    [(" \n", "nothing to try"), ("churn\n" * (MAX_TRIED + 1), "At most"), ("c" * 1001, "At most")],
)
async def test_what_cannot_be_tried_is_said_and_nothing_is_read(
    words: OwnWords, source: TermInspector, sentences: str, said: str
) -> None:
    assert said in await last(words.tried(sentences, *FORM))
    assert source.requests == []


async def test_an_unfinished_form_is_a_message_where_the_table_would_be(words: OwnWords) -> None:
    html = await last(words.tried("The churn.", "churn", "leaving", "", "", "", ""))
    assert 'role="alert"' in html and "Name the other meaning" in html


@pytest.mark.parametrize("succeeding", [0, 1])
async def test_a_source_that_fails_is_a_message_with_its_remedy(tmp_path: Path, succeeding: int) -> None:
    failing = TermInspector(outcomes=[None] * succeeding, then=UnavailableError("The <server> is busy.", "Wait."))
    html = await last(OwnWords(SAEAnnotator(source=failing), tmp_path).tried("The churn.", *FORM))
    assert "The &lt;server&gt; is busy." in html and "Wait." in html


# Keeping.


async def test_a_saved_word_is_listed_compiled_and_the_chats_glossary(words: OwnWords, source: TermInspector) -> None:
    listed, said = await last(words.saved(request_of(None), *FORM))
    assert "<th scope" in listed and "customers who leave" in listed and "holds from your next message" in said
    glossary = WordsTab(None, None, words.folder).glossary(None)
    assert glossary == Glossary(terms=[term_from(*FORM)])
    assert [request.glossary for request in source.requests] == [glossary]
    assert words.listed(request_of(None)) == listed == own_terms_html(glossary)


async def test_users_do_not_see_each_others_words(words: OwnWords) -> None:
    await last(words.saved(request_of("ada"), *FORM))
    tab = WordsTab(None, None, words.folder)
    assert tab.glossary("ada") is not None
    assert tab.glossary("ben") is None and tab.glossary(None) is None
    assert "not saved any" in words.listed(request_of("ben"))
    assert words.exported(request_of("ben"))[0] == ""
    assert "churn" in words.removed(request_of("ben"), "churn")[1]
    assert tab.glossary("ada") is not None


async def test_a_bad_form_is_not_saved(words: OwnWords) -> None:
    listed, said = await last(words.saved(request_of(None), "churn", "", "milk", "", "", ""))
    assert "not saved any" in listed and "What it means for you" in said
    assert not words.folder.exists()


async def test_a_word_that_cannot_be_compiled_now_is_kept_and_that_is_said(tmp_path: Path) -> None:
    words = OwnWords(SAEAnnotator(source=TermInspector(then=UnavailableError("Busy.", "Wait."))), tmp_path)
    listed, said = await last(words.saved(request_of(None), *FORM))
    assert "<th scope" in listed
    assert "is saved, but not compiled yet: Busy." in said and "Wait." in said


async def test_a_saved_word_can_be_changed_and_removed(words: OwnWords) -> None:
    await last(words.saved(request_of(None), *FORM))
    *fields, said = words.opened(request_of(None), "Churn")
    assert tuple(fields) == FORM and "saved again" in said
    await last(words.saved(request_of(None), *fields[:1], "accounts closed", *fields[2:]))
    listed, said = words.removed(request_of(None), " churn, churned")
    assert "not saved any" in listed and "is removed" in said


@pytest.mark.parametrize(("word", "said"), [("", "No word is named"), (EVIL, "You have not saved")])
def test_a_word_that_was_not_saved_is_neither_removed_nor_opened(words: OwnWords, word: str, said: str) -> None:
    for message in (words.removed(request_of(None), word)[-1], words.opened(request_of(None), word)[-1]):
        assert said in message and "<img" not in message


async def test_the_export_is_the_overlays_yaml(words: OwnWords, tmp_path: Path) -> None:
    assert words.exported(request_of(None))[0] == ""
    await last(words.saved(request_of(None), *FORM))
    text, said = words.exported(request_of(None))
    (tmp_path / "glossary.yaml").write_text(text)
    assert Glossary.from_yaml(tmp_path / "glossary.yaml").terms == [term_from(*FORM)]
    assert "Glossary.from_yaml" in said


async def test_a_damaged_file_is_a_message_everywhere(words: OwnWords) -> None:
    path = Overlay.at(words.folder, None).path
    path.parent.mkdir()
    path.write_text("churn: {")
    here = request_of(None)
    messages = [words.listed(here), (await last(words.saved(here, *FORM)))[1], words.removed(here, "churn")[1],
                words.opened(here, "churn")[-1], words.exported(here)[1]]  # fmt: skip
    assert all("is damaged" in message and "move it away" in message for message in messages)
    with pytest.raises(InputError, match="is damaged"):
        WordsTab(None, None, words.folder).glossary(None)


async def test_saved_words_are_escaped(words: OwnWords) -> None:
    listed, said = await last(words.saved(request_of(None), "<b>x", EVIL, EVIL, "", "", "{mention}" + EVIL))
    assert "<img" not in listed and "<b>x" not in listed + said
    assert "&lt;img" in listed


# The layout.


def test_the_tab_is_laid_out_with_the_ids_that_tests_and_styles_use(tmp_path: Path) -> None:
    annotator = SAEAnnotator(source=TermInspector())
    with gr.Blocks() as page, gr.Tab("Catalog"):
        tab = words_tab(CATALOG, annotator, tmp_path / "own")
    ids = {block.elem_id for block in page.blocks.values() if getattr(block, "elem_id", None)}
    assert ids >= {
        "sc-concepts", "sc-concept", "sc-term", "sc-meaning", "sc-otherwise", "sc-term-examples",
        "sc-term-counterexamples", "sc-try", "sc-try-run", "sc-term-save", "sc-term-remove", "sc-term-export",
        "sc-try-result", "sc-own-terms",
    }  # fmt: skip
    shown = tab.frame.postprocess(frame_value(sense_rows(CATALOG)))
    assert shown.headers == HEADERS and len(shown.metadata["display_value"]) == len(shown.data)
    assert tab.glossary("ada") is None
    assert not (tmp_path / "own").exists()


def test_a_catalog_that_cannot_be_read_leaves_the_form_usable(tmp_path: Path) -> None:
    with gr.Blocks():
        tab = words_tab(tmp_path / "none.sqlite", SAEAnnotator(source=TermInspector()), tmp_path)
    assert "There is no catalog" in tab.detail.value
    assert tab.frame.postprocess(frame_value([])).data == []


@pytest.mark.parametrize("name", ["listed", "saved", "removed", "opened", "exported"])
def test_gradio_gives_the_handlers_their_request_first(words: OwnWords, name: str) -> None:
    from gradio.helpers import special_args

    here = request_of("ada")
    inputs, *_ = special_args(getattr(words, name), ["churn"], request=here)
    assert inputs == [here, "churn"]
    assert next(iter(inspect.signature(getattr(words, name)).parameters)) == "request"


def test_a_new_sense_is_told_from_the_known_ones() -> None:
    rows = sense_rows(CATALOG)
    word, meaning, otherwise, examples, counterexamples, _ = sense_form(CATALOG, rows, "bank")
    assert "bank" in word.split(", ")
    assert (meaning, examples) == ("", "")
    assert otherwise.splitlines() == [row.gloss for row in rows if row.concept == "bank"]
    assert len(counterexamples.splitlines()) >= 8
    term = term_from(word, "a row of switches", otherwise, "Turn off the bank in the hall.", counterexamples, "")
    assert term.term == word.split(", ")[0]


def test_styles_are_prefixed_and_take_their_colours_from_variables() -> None:
    css = Path(tab.__file__).with_name("words.css").read_text("utf-8")
    rules = css.split("*/", 1)[1]
    assert "#0" not in rules and "rgb(" not in rules
    for line in rules.strip().splitlines():
        assert all(part.strip().startswith((".sc-", "#sc-")) for part in line.split("{")[0].split(",")), line
