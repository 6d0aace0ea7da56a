"""The chat's layout: two columns of answers, the reading pane beside them, and which event does what."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from middleware import SAEAnnotator
from sae_runtime.glossary import Glossary
from ui.backend import Backend
from ui.chat.conversation import Conversation
from ui.chat.handlers import READY, Handlers
from ui.chat.lookup import Lookup
from ui.chat.render import figures_html, note_html, reading_html
from ui.download import download_script
from ui.events import QUIET

MAX_TOKENS = 384  # of an answer
TURNS_AT_ONCE = 8  # of all users together
_PANE_SCRIPT = Path(__file__).with_name("pane.js").read_text("utf-8")
_HEIGHT = 430  # pixels of both columns; fixed, so that nothing moves while answers come
_MAX_DOMAIN = 64  # characters, as the server takes them
_TURN: dict[str, Any] = {**QUIET, "concurrency_id": "turn", "concurrency_limit": TURNS_AT_ONCE}
EXAMPLES = [  # what the button says, prompt, declared domain; the last one is read as it is meant
    ("scales (in music)", "How can I make my scales more accurate without spending hours on them?", "music"),
    (
        "a jam on the sofa",
        "The kids got stuck in the jam again, all ten fingers, and some of it is on the sofa too. How do I get strawberry "
        "stains out of linen?",
        "",
    ),
    ("a bass on the stairs", "The bass was too heavy to carry up the stairs. What should I do?", ""),
]


@dataclass(frozen=True)
class ChatTab:
    """What the page needs of the chat: the pane, whose event ``feature`` asks for a feature's page."""

    pane: gr.HTML


@dataclass(frozen=True)
class _Parts:
    """The chat's components; ``outputs`` are what a turn changes, in the order of :func:`ui.chat.handlers.values`."""

    conversation: gr.State
    noted: gr.Chatbot
    plain: gr.Chatbot
    pane: gr.HTML
    notes: gr.HTML
    figures: gr.HTML
    prompt: gr.Textbox
    examples: list[gr.Button]
    compare: gr.Checkbox
    domain: gr.Textbox
    clear: gr.Button
    save_data: gr.Button
    save_page: gr.Button

    @property
    def outputs(self) -> list[Any]:
        return [self.conversation, self.noted, self.plain, self.pane, self.notes, self.figures, self.prompt]


def chat_tab(
    annotator: SAEAnnotator,
    backend: Backend,
    lookup: Lookup,
    glossary: Callable[[str | None], Glossary | None] = lambda user: None,
    *,
    max_tokens: int = MAX_TOKENS,
) -> ChatTab:
    """Lay the chat out in the present Gradio context; arguments as in :class:`~ui.chat.handlers.Handlers`."""
    handlers = Handlers(annotator, backend, lookup, glossary, max_tokens)
    parts = _layout(lookup)
    running = _turns(parts, handlers)
    parts.prompt.stop(handlers.stopped, parts.conversation, parts.outputs, cancels=running, queue=False, **QUIET)
    for clear in (parts.clear.click, parts.noted.clear, parts.plain.clear):
        clear(handlers.cleared, None, parts.outputs, cancels=running, queue=False, **QUIET)
    for column in (parts.noted, parts.plain):
        column.select(handlers.select, parts.conversation, [parts.pane, parts.notes], **QUIET)
    parts.compare.change(lambda show: gr.update(visible=show), parts.compare, parts.plain, **QUIET)
    _files(parts, handlers)
    return ChatTab(parts.pane)


def _layout(lookup: Lookup) -> _Parts:
    with gr.Row(equal_height=False):
        with gr.Column(scale=3, min_width=320):
            with gr.Row():
                noted = _column("With notes", "sc-chat", editable="user")
                plain = _column("Without notes", "sc-twin")
            prompt = gr.Textbox(
                label="Your message",
                placeholder="Ask something …",
                lines=1,  # Enter sends; Shift-Enter makes a new line
                max_lines=6,
                elem_id="sc-prompt",
                **READY,
            )
            with gr.Row(elem_id="sc-examples"):
                examples = [gr.Button(label, size="sm", min_width=90) for label, _, _ in EXAMPLES]
            with gr.Row():
                compare = gr.Checkbox(value=True, label="Show the answer without notes, too", elem_id="sc-compare")
                domain = gr.Textbox(
                    label="What is it about? (optional)",
                    placeholder="e.g. finance",
                    elem_id="sc-domain",
                    max_lines=1,
                    max_length=_MAX_DOMAIN,
                )
            with gr.Row(elem_id="sc-tools"):
                clear = gr.Button("New conversation", size="sm", min_width=90, elem_id="sc-clear")
                save_data = gr.Button("Save as JSON", size="sm", min_width=90, elem_id="sc-save-json")
                save_page = gr.Button("Save as page", size="sm", min_width=90, elem_id="sc-save-page")
        with gr.Column(scale=2, min_width=320):
            _html('<h2 class="sc-title">How the model read it</h2>')
            pane = _html(reading_html(None, lookup), elem_id="sc-reading", js_on_load=_PANE_SCRIPT)
            _html('<h2 class="sc-title">Added to your message</h2>')
            notes = _html(note_html(None), elem_id="sc-note")
            figures = _html(figures_html(Conversation()), elem_id="sc-totals")
    conversation = gr.State(Conversation())
    return _Parts(
        conversation, noted, plain, pane, notes, figures, prompt, examples, compare, domain, clear, save_data, save_page
    )


def _turns(parts: _Parts, handlers: Handlers) -> list[Any]:
    """Wire everything that makes a turn; returns the events, which Stop and Clear cancel."""
    asked = [parts.prompt, parts.conversation, parts.domain, parts.compare]
    turned = [parts.conversation, parts.compare]
    running = [
        parts.prompt.submit(handlers.ask, asked, parts.outputs, **_TURN),
        parts.noted.retry(handlers.again, turned, parts.outputs, **_TURN),
        parts.noted.edit(handlers.edited, turned, parts.outputs, **_TURN),
        parts.pane.choose(handlers.choose, turned, parts.outputs, **_TURN),
    ]
    for button, (_, text, about) in zip(parts.examples, EXAMPLES, strict=True):
        filled = button.click(lambda text=text, about=about: (text, about), None, [parts.prompt, parts.domain], **QUIET)
        running.append(filled.then(handlers.ask, asked, parts.outputs, **_TURN))
    return running


def _files(parts: _Parts, handlers: Handlers) -> None:
    """Wire the buttons that save the conversation."""
    for button, make, name, kind in (
        (parts.save_data, handlers.as_json, "sensecheck.json", "application/json"),
        (parts.save_page, handlers.as_page, "sensecheck.html", "text/html"),
    ):
        text = gr.Textbox(visible="hidden", label="File")
        made = button.click(make, parts.conversation, text, **QUIET)
        made.success(None, text, None, js=download_script(name, kind), **QUIET)


def _column(label: str, name: str, **options: Any) -> gr.Chatbot:
    return gr.Chatbot(
        label=label, height=_HEIGHT, elem_id=name, buttons=["copy"], min_width=280, feedback_options=None, **options
    )


def _html(value: str, **options: Any) -> gr.HTML:
    return gr.HTML(value, apply_default_css=False, **options)
