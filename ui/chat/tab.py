"""The chat: two columns of answers, the reading pane beside them, and what happens when one of them is touched."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gradio as gr

from middleware import SAEAnnotator
from sae_runtime.errors import SensecheckError
from sae_runtime.glossary import Glossary
from ui.backend import Backend
from ui.chat.conversation import Conversation, Exchange, run_turn
from ui.chat.export import as_json, as_page
from ui.chat.lookup import Lookup
from ui.chat.render import figures_html, note_html, reading_html

PANE_SCRIPT = Path(__file__).with_name("pane.js").read_text("utf-8")
MAX_TOKENS = 384  # of an answer
_HEIGHT = 430  # pixels of both columns; fixed, so that nothing moves while answers come
EXAMPLES = [  # what the button says, prompt, declared domain; the last one is read as it is meant
    ("a mouse (the animal)", "How often should I clean my mouse?", "biology"),
    (
        "a pitcher at a picnic",
        "The pitcher took a nasty knock at Saturday's baseball picnic, and now lemonade leaks through a crack near the "
        "handle. Which glue is food safe?",
        "",
    ),
    ("a bass on the stairs", "The bass was too heavy to carry up the stairs. What should I do?", ""),
]
_DOWNLOAD = """(text) => {{
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], {{ type: "{kind}" }}));
  link.download = "{name}";
  link.click();
  URL.revokeObjectURL(link.href);
}}"""


@dataclass(frozen=True)
class ChatTab:
    """What the page needs of the chat: the pane, whose event ``feature`` asks for a feature's page."""

    pane: gr.HTML


@dataclass
class _Chat:
    """The chat's handlers; all state is in the browser session, so that users never see each other's conversation."""

    annotator: SAEAnnotator
    backend: Backend
    lookup: Lookup
    glossary: Callable[[str | None], Glossary | None]
    max_tokens: int

    def __post_init__(self) -> None:
        self.model = self.backend.chat_model(max_tokens=self.max_tokens)

    async def ask(
        self, prompt: str, conversation: Conversation, domain: str, compare: bool, request: gr.Request
    ) -> AsyncIterator[Any]:
        """A new message."""
        if prompt.strip():
            asked = Exchange(prompt.strip(), domain.strip())
            async for view in self._turn(conversation, asked, compare, request.username):
                yield view
        else:
            yield gr.skip()

    async def again(
        self, conversation: Conversation, compare: bool, request: gr.Request, event: gr.RetryData
    ) -> AsyncIterator[Any]:
        """The same message once more."""
        number = _turn_number(conversation, _index(event))
        old = conversation.exchanges[number]
        asked = Exchange(old.prompt, old.domain, old.choices)
        async for view in self._turn(conversation.before(number), asked, compare, request.username):
            yield view

    async def edited(
        self, conversation: Conversation, compare: bool, request: gr.Request, event: gr.EditData
    ) -> AsyncIterator[Any]:
        """Another wording of a message; what came after it goes."""
        number = _turn_number(conversation, _index(event))
        asked = Exchange(str(event.value), conversation.exchanges[number].domain)
        async for view in self._turn(conversation.before(number), asked, compare, request.username):
            yield view

    async def choose(
        self, conversation: Conversation, compare: bool, shown: int | None, request: gr.Request, event: gr.EventData
    ) -> AsyncIterator[Any]:
        """A button on a card; the message that it stands under is answered anew."""
        if not conversation.exchanges:
            yield gr.skip()
            return
        number = len(conversation.exchanges) - 1 if shown is None else shown
        exchange, always = conversation.exchanges[number], conversation.always
        concept, sense = str(event.concept), str(event.sense)
        if event.action == "always":
            always = always.pick(concept, sense)
        elif event.action == "forget":
            always = always.forget(concept)
        own = {
            "drop": exchange.choices.drop(concept),
            "use": exchange.choices.pick(concept, sense),
        }.get(str(event.action), exchange.choices.forget(concept))
        before = replace(conversation.before(number), always=always)
        asked = Exchange(exchange.prompt, exchange.domain, own)
        async for view in self._turn(before, asked, compare, request.username):
            yield view

    def select(self, conversation: Conversation, request: gr.Request, event: gr.SelectData) -> tuple[Any, ...]:
        """A message was clicked: show how it was read."""
        number = _turn_number(conversation, _index(event))
        exchange = conversation.exchanges[number]
        pane = reading_html(exchange, self.lookup, conversation.always, self._glossary(request.username))
        return number, pane, note_html(exchange.annotated)

    def cleared(self) -> tuple[Any, ...]:
        """An empty page; what stands in the message box stays there."""
        return _values(Conversation(), True, reading_html(None, self.lookup), None, gr.update(**_READY))

    def _glossary(self, user: str | None) -> Glossary | None:
        """The user's own words; a damaged file of them costs nobody an answer."""
        try:
            return self.glossary(user)
        except SensecheckError as error:
            gr.Warning(f"Your own words are left out. {error}")
            return None

    async def _turn(
        self, history: Conversation, asked: Exchange, compare: bool, user: str | None
    ) -> AsyncIterator[tuple[Any, ...]]:
        glossary = self._glossary(user)
        annotator = self.annotator.model_copy(update={"glossary": glossary}) if glossary else self.annotator
        box: Any = gr.update(value="", **_BUSY)
        drawn: Any = None
        exchange = asked
        async for exchange in run_turn(annotator, self.model, history, asked, compare=compare):
            # The pane is sent only when it changed: whoever has the keyboard in it would lose their place.
            pane = gr.skip()
            if drawn is None or exchange.annotated is not drawn:
                drawn = exchange.annotated
                pane = reading_html(exchange, self.lookup, history.always, glossary)
            yield _values(history.with_turn(exchange), compare, pane, exchange, box)
            box = gr.skip()  # the user may be writing the next message
        yield _values(history.with_turn(exchange), compare, gr.skip(), exchange, gr.update(**_READY))


_BUSY = {"submit_btn": False, "stop_btn": True}
_READY = {"submit_btn": True, "stop_btn": False}


def chat_tab(
    annotator: SAEAnnotator,
    backend: Backend,
    lookup: Lookup,
    glossary: Callable[[str | None], Glossary | None] = lambda user: None,
    *,
    max_tokens: int = MAX_TOKENS,
) -> ChatTab:
    """Lay the chat out in the present Gradio context.

    Args:
        annotator: reads prompts.
        backend: answers.
        lookup: meanings and features.
        glossary: the terms of a user (None: the only one).
        max_tokens: length limit of an answer.
    """
    chat = _Chat(annotator, backend, lookup, glossary, max_tokens)
    conversation, shown = gr.State(Conversation()), gr.State(None)
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
                **_READY,
            )
            with gr.Row(elem_id="sc-examples"):
                samples = [gr.Button(label, size="sm", min_width=90) for label, _, _ in EXAMPLES]
            with gr.Row():
                compare = gr.Checkbox(value=True, label="Show the answer without notes, too", elem_id="sc-compare")
                domain = gr.Textbox(
                    label="What is it about? (optional)", placeholder="e.g. finance", elem_id="sc-domain", max_lines=1
                )
            with gr.Row(elem_id="sc-tools"):
                clear = gr.Button("New conversation", size="sm", min_width=90, elem_id="sc-clear")
                save_data = gr.Button("Save as JSON", size="sm", min_width=90, elem_id="sc-save-json")
                save_page = gr.Button("Save as page", size="sm", min_width=90, elem_id="sc-save-page")
        with gr.Column(scale=2, min_width=320):
            gr.HTML('<h2 class="sc-title">How the model read it</h2>', apply_default_css=False)
            pane = gr.HTML(
                reading_html(None, lookup), elem_id="sc-reading", js_on_load=PANE_SCRIPT, apply_default_css=False
            )
            gr.HTML('<h2 class="sc-title">Added to your message</h2>', apply_default_css=False)
            notes = gr.HTML(note_html(None), elem_id="sc-note", apply_default_css=False)
            figures = gr.HTML(figures_html(Conversation()), elem_id="sc-totals", apply_default_css=False)
    file = gr.Textbox(visible="hidden", label="File")
    outputs = [conversation, noted, plain, pane, notes, figures, prompt]
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}

    inputs = [prompt, conversation, domain, compare]
    running = [
        prompt.submit(chat.ask, inputs, outputs, show_progress="hidden", api_name="ask"),
        noted.retry(chat.again, [conversation, compare], outputs, **quiet),
        noted.edit(chat.edited, [conversation, compare], outputs, **quiet),
        pane.choose(chat.choose, [conversation, compare, shown], outputs, **quiet),
    ]
    for button, (_, text, about) in zip(samples, EXAMPLES, strict=True):
        filled = button.click(lambda text=text, about=about: (text, about), None, [prompt, domain], **quiet)
        running.append(filled.then(chat.ask, inputs, outputs, **quiet))
    for event in running:  # a new turn is what the pane shows, and what choices are about
        event.then(lambda: None, None, shown, **quiet)
    prompt.stop(lambda: gr.update(**_READY), None, prompt, cancels=running, **quiet)
    noted.select(chat.select, [conversation], [shown, pane, notes], **quiet)
    for cleared in (clear.click, noted.clear, plain.clear):
        cleared(chat.cleared, None, outputs, cancels=running, queue=False, **quiet)
    compare.change(lambda show: gr.update(visible=show), compare, plain, **quiet)
    for button, make, name, kind in (
        (save_data, lambda c: as_json(c, backend.model), "sensecheck.json", "application/json"),
        (save_page, lambda c: as_page(c, backend.model, lookup), "sensecheck.html", "text/html"),
    ):
        button.click(make, conversation, file, **quiet).then(
            None, file, None, js=_DOWNLOAD.format(kind=kind, name=name), **quiet
        )
    return ChatTab(pane)


def _column(label: str, name: str, **options: Any) -> gr.Chatbot:
    return gr.Chatbot(
        label=label, height=_HEIGHT, elem_id=name, buttons=["copy"], min_width=280, feedback_options=None, **options
    )


def _values(
    conversation: Conversation, compare: bool, pane: Any, current: Exchange | None, box: Any
) -> tuple[Any, ...]:
    """Values of all outputs."""
    return (
        conversation,
        _messages(conversation, notes=True),
        gr.update(value=_messages(conversation, notes=False), visible=compare),
        pane,
        note_html(current.annotated if current else None),
        figures_html(conversation),
        box,
    )


def _messages(conversation: Conversation, *, notes: bool) -> list[dict[str, str]]:
    """One column as the chatbot takes it: per turn the message and the answer, as far as it has come."""
    rows: list[dict[str, str]] = []
    for exchange in conversation.exchanges:
        answer = exchange.noted if notes or exchange.plain is None else exchange.plain
        rows.append({"role": "user", "content": exchange.prompt})
        rows.append({"role": "assistant", "content": answer or exchange.failed or "…"})
        if answer and exchange.failed:
            rows[-1]["content"] += f"\n\n_{exchange.failed}_"
    return rows


def _index(event: Any) -> int:
    """The number of the message that an event of the chatbot is about."""
    index = event.index
    return int(index[0] if isinstance(index, list | tuple) else index)


def _turn_number(conversation: Conversation, message: int) -> int:
    """The turn that message number ``message`` belongs to; every turn has two."""
    return max(0, min(message // 2, len(conversation.exchanges) - 1))
