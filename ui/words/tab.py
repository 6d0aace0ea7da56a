"""The tab of words: the catalog's concepts and senses, how well they are read, and one's own words beside them.

Own words are kept in an :class:`~ui.words.overlay.Overlay` for each user, never in the shipped catalog.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from middleware import SAEAnnotator
from sae_runtime.catalog.browse import SenseSummary, sense_contexts, sense_rows
from sae_runtime.catalog.location import CatalogLocation
from sae_runtime.errors import SensecheckError
from sae_runtime.glossary import Glossary
from ui.download import download_script
from ui.events import QUIET
from ui.words.overlay import Overlay
from ui.words.own_words import LABELS, OwnWords
from ui.words.render import DATATYPES, concept_html, frame_value, hint_html, own_terms_html, problem_html

_KNOWN = 4  # sentences of each known sense that a new one is told from
_WIDTHS = ["120px", "130px", "260px", "100px", "210px", "90px", "90px", "320px"]


@dataclass(frozen=True)
class WordsTab:
    """The tab's table, its detail pane, and where own words are kept."""

    frame: gr.Dataframe
    detail: gr.HTML
    overlay_folder: Path

    def glossary(self, user: str | None) -> Glossary | None:
        """The own words of ``user`` (``gr.Request.username``; None without accounts), or None. Read anew at each call.

        Raises:
            InputError: their file is damaged.
        """
        return Overlay.at(self.overlay_folder, user).terms()


def words_tab(catalog: CatalogLocation, annotator: SAEAnnotator, overlay_folder: Path) -> WordsTab:
    """Lay the tab out; call it inside a ``gr.Tab``. A catalog that cannot be read is said so in the tab.

    Args:
        catalog: where it is; read only.
        annotator: compiles own words and reads the sentences they are tried on.
        overlay_folder: where own words are kept; made at need.
    """
    rows, opening = _rows(catalog)
    frame = gr.Dataframe(
        frame_value(rows), datatype=DATATYPES, type="array", interactive=False, wrap=True, pinned_columns=1,
        show_search="search", column_widths=_WIDTHS, max_height=420, label="Concepts and senses",
        elem_id="sc-concepts", buttons=["fullscreen"],
    )  # fmt: skip
    detail = gr.HTML(opening, elem_id="sc-concept", apply_default_css=False)
    concept = gr.State("")
    another = gr.Button("Add a sense to this word", size="sm", visible=False, elem_id="sc-add-sense")

    def chosen(event: gr.SelectData) -> tuple[Any, ...]:
        # The row's own values: its number changes when the table is sorted or filtered.
        slug = str(event.row_value[0]) if event.row_value else ""
        return slug, concept_detail(catalog, rows, slug), gr.update(visible=bool(slug))

    frame.select(chosen, None, [concept, detail, another], **QUIET)
    with gr.Accordion("Add your own word", open=False) as accordion:
        form = _own_words(OwnWords(annotator, overlay_folder))
    another.click(
        lambda slug: (gr.Accordion(open=True), *sense_form(catalog, rows, slug)), concept, [accordion, *form], **QUIET
    )
    return WordsTab(frame, detail, overlay_folder)


def concept_detail(catalog: CatalogLocation, rows: Sequence[SenseSummary], concept: str) -> str:
    """HTML of the concept with that slug."""
    senses = [row for row in rows if row.concept == concept]
    if not senses:
        return hint_html("The catalog has no such concept. Choose a row of the table.")
    try:
        return concept_html(senses, sense_contexts(catalog, concept))
    except SensecheckError as error:
        return problem_html(error)


def sense_form(catalog: CatalogLocation, rows: Sequence[SenseSummary], concept: str) -> tuple[str, ...]:
    """The form's six fields for a new sense of ``concept``: what is known stands where the word is mistaken for.

    The catalog's signatures only tell its own senses apart, so the new one is compiled against all of them together.
    """
    senses = [row for row in rows if row.concept == concept]
    try:
        contexts = sense_contexts(catalog, concept)
    except SensecheckError:  # the sentences are only a help
        contexts = {}
    known = [text for found in contexts.values() for text, _, _ in found[:_KNOWN]]
    forms = ", ".join(senses[0].forms) if senses else concept
    return forms, "", "\n".join(row.gloss for row in senses), "", "\n".join(known), ""


def _own_words(words: OwnWords) -> list[Any]:
    """Form, buttons and events; returns the form's six fields."""
    with gr.Row():
        word = gr.Textbox(label="Word or phrase", placeholder="churn, churned", elem_id="sc-term", max_length=400,
                          info="Further forms behind commas.")  # fmt: skip
        meaning = gr.Textbox(label=LABELS["meaning"], placeholder="customers who cancel", elem_id="sc-meaning")
        otherwise = gr.Textbox(label=LABELS["otherwise"], placeholder="stirring milk to make butter", lines=1,
                               max_lines=4, elem_id="sc-otherwise", info="One meaning per line.")  # fmt: skip
    with gr.Row():
        advice = "One per line; three or more are recommended."
        examples = gr.Textbox(label=LABELS["examples"], info=advice, lines=4, elem_id="sc-term-examples")
        counter = gr.Textbox(label=LABELS["counterexamples"], info=advice, lines=4, elem_id="sc-term-counterexamples")
    note = gr.Textbox(label="Note (optional)", placeholder='"{mention}" means customers who cancel here.',
                      elem_id="sc-term-note")  # fmt: skip
    sentences = gr.Textbox(label="Try it on your own sentences", info="One per line.", lines=3, elem_id="sc-try")
    with gr.Row():
        try_it = gr.Button("Try", variant="primary", elem_id="sc-try-run")
        save = gr.Button("Save", elem_id="sc-term-save")
        edit = gr.Button("Edit a saved word", elem_id="sc-term-edit")
        remove = gr.Button("Remove", elem_id="sc-term-remove")
        export = gr.Button("Export YAML", elem_id="sc-term-export")
    result = gr.HTML(elem_id="sc-try-result", apply_default_css=False)
    own = gr.HTML(own_terms_html(None), elem_id="sc-own-terms", apply_default_css=False)
    text = gr.Textbox(visible="hidden", elem_id="sc-term-yaml")
    form = [word, meaning, otherwise, examples, counter, note]
    try_it.click(words.tried, [sentences, *form], result, **QUIET)
    save.click(words.saved, form, [own, result], **QUIET)
    edit.click(words.opened, word, [*form, result], **QUIET)
    remove.click(words.removed, word, [own, result], **QUIET)
    export.click(words.exported, None, [text, result], **QUIET).success(
        None, text, None, js=download_script("glossary.yaml", "application/yaml")
    )
    gr.on(None, words.listed, None, own, **QUIET)  # None: when the page is loaded
    return form


def _rows(catalog: CatalogLocation) -> tuple[list[SenseSummary], str]:
    """The catalog's senses, and what the detail pane says at first."""
    try:
        return sense_rows(catalog), hint_html("Choose a row to see the concept's senses and sentences.")
    except SensecheckError as error:  # the chat itself does not need the tab
        return [], problem_html(error)
