"""What the chat's events do. All state is in the browser session, so that users never see each other's conversation."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

import gradio as gr

from middleware import SAEAnnotator
from sae_runtime.errors import SensecheckError
from sae_runtime.glossary import Glossary
from ui.backend import Backend
from ui.chat.conversation import STOPPED, Choices, Conversation, Exchange, run_turn
from ui.chat.export import as_json, as_page
from ui.chat.lookup import Lookup
from ui.chat.render import figures_html, note_html, reading_html
from ui.events import sent

BUSY = {"submit_btn": False, "stop_btn": True}
READY = {"submit_btn": True, "stop_btn": False}
_NOT_ASKED = "(not asked for)"
Views = AsyncIterator[tuple[Any, ...]]


@dataclass
class Handlers:
    """The chat's handlers. Those of turns yield values of all outputs, in the order of :func:`values`.

    Of all turns under way in one browser session only the newest writes: a choice on a card may well be made while the
    answers still come.

    Attributes:
        annotator: reads prompts.
        backend: answers.
        lookup: meanings and features.
        glossary: the terms of a user (None: the only one).
        max_tokens: length limit of an answer.
    """

    annotator: SAEAnnotator
    backend: Backend
    lookup: Lookup
    glossary: Callable[[str | None], Glossary | None]
    max_tokens: int
    _newest: dict[str | None, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.model = self.backend.chat_model(max_tokens=self.max_tokens)

    async def ask(
        self, prompt: str, conversation: Conversation, domain: str, compare: bool, request: gr.Request
    ) -> Views:
        """A new message."""
        if not prompt.strip():
            yield _nothing()
            return
        asked = Exchange(prompt.strip(), domain.strip())
        async for view in self._turn(conversation, asked, compare, request, from_box=True):
            yield view

    async def again(self, conversation: Conversation, compare: bool, request: gr.Request, event: gr.RetryData) -> Views:
        """The same message once more; what came after it goes."""
        number = turn_number(conversation, event.index)
        if number is None:
            yield _over()
            return
        old = conversation.exchanges[number]
        asked = Exchange(old.prompt, old.domain, old.choices)
        async for view in self._turn(conversation.before(number), asked, compare, request):
            yield view

    async def edited(self, conversation: Conversation, compare: bool, request: gr.Request, event: gr.EditData) -> Views:
        """Another wording of a message; what came after it goes."""
        number = turn_number(conversation, event.index)
        text = str(event.value).strip()
        if number is None or not text:
            yield _over() if number is None else _nothing()
            return
        asked = Exchange(text, conversation.exchanges[number].domain)
        async for view in self._turn(conversation.before(number), asked, compare, request):
            yield view

    async def choose(
        self, conversation: Conversation, compare: bool, request: gr.Request, event: gr.EventData
    ) -> Views:
        """A button on a card; the message that the card stands under is answered anew, and what came after it goes."""
        data = sent(event)
        number, action = data.get("turn"), data.get("action")
        concept, sense = str(data.get("concept")), str(data.get("sense"))
        if type(number) is not int or not 0 <= number < len(conversation.exchanges):
            yield _over()
            return
        known = self.lookup.glosses(concept, self._glossary(request))
        if action in ("always", "use") and sense not in known:
            yield _nothing()
            return
        exchange = conversation.exchanges[number]
        own, always = _chosen(action, concept, sense, exchange.choices, conversation.always)
        asked = Exchange(exchange.prompt, exchange.domain, own)
        async for view in self._turn(replace(conversation.before(number), always=always), asked, compare, request):
            yield view

    def select(self, conversation: Conversation, request: gr.Request, event: gr.SelectData) -> tuple[Any, Any]:
        """A message was clicked: show how it was read, and what was added to it."""
        number = turn_number(conversation, event.index)
        if number is None:
            return gr.skip(), gr.skip()
        exchange = conversation.exchanges[number]
        pane = reading_html(exchange, self.lookup, number, conversation.always, self._glossary(request))
        return pane, note_html(exchange.annotated)

    def stopped(self, conversation: Conversation, request: gr.Request) -> tuple[Any, ...]:
        """The newest turn ends as it is; one that was not even read says so."""
        self._newest.pop(request.session_hash, None)
        if not conversation.exchanges:
            return _nothing(gr.update(**READY))
        number = len(conversation.exchanges) - 1
        last = conversation.exchanges[number]
        if not last.noted:
            last = replace(last, failed=STOPPED)
        stopped = conversation.before(number).with_turn(last)
        pane = reading_html(last, self.lookup, number, conversation.always, self._glossary(request))
        return values(stopped, pane, note_html(last.annotated), gr.update(**READY))

    def cleared(self, request: gr.Request) -> tuple[Any, ...]:
        """An empty page; what stands in the message box stays there."""
        self._newest.pop(request.session_hash, None)
        return values(Conversation(), reading_html(None, self.lookup), note_html(None), gr.update(**READY))

    def as_json(self, conversation: Conversation) -> str:
        """The conversation as JSON text."""
        return as_json(conversation, self.backend.model)

    def as_page(self, conversation: Conversation, request: gr.Request) -> str:
        """The conversation as an HTML page."""
        return as_page(conversation, self.backend.model, self.lookup, self._glossary(request))

    def _glossary(self, request: gr.Request) -> Glossary | None:
        """The user's own words; a damaged file of them costs nobody an answer."""
        try:
            return self.glossary(request.username)
        except SensecheckError as error:
            gr.Warning(f"Your own words are left out. {error}")
            return None

    async def _turn(
        self, history: Conversation, asked: Exchange, compare: bool, request: gr.Request, *, from_box: bool = False
    ) -> Views:
        """Values of all outputs while a turn is read and answered; ``from_box``: the message came from the message box."""
        session, mine = request.session_hash, object()
        self._newest[session] = mine
        glossary = self._glossary(request)
        annotator = self.annotator.model_copy(update={"glossary": glossary}) if glossary else self.annotator
        box: Any = gr.update(**({"value": ""} if from_box else {}), **BUSY)
        drawn: Any = self
        try:
            async with aclosing(run_turn(annotator, self.model, history, asked, compare=compare)) as turn:
                async for exchange in turn:
                    if self._newest.get(session) is not mine:
                        return
                    # The pane is sent only when it changed: whoever has the keyboard in it would lose their place.
                    pane = notes = gr.skip()
                    if exchange.annotated is not drawn:
                        drawn = exchange.annotated
                        number = len(history.exchanges)
                        pane = reading_html(exchange, self.lookup, number, history.always, glossary)
                        notes = note_html(drawn)
                    yield values(history.with_turn(exchange), pane, notes, box)
                    box = gr.skip()  # the user may be writing the next message
            if self._newest.get(session) is mine:
                yield _nothing(gr.update(**READY))
        finally:
            if self._newest.get(session) is mine:
                del self._newest[session]


def values(conversation: Conversation, pane: Any, notes: Any, box: Any) -> tuple[Any, ...]:
    """Conversation, both columns, reading pane, notes, figures, message box."""
    columns = (messages(conversation, notes=True), messages(conversation, notes=False))
    return conversation, *columns, pane, notes, figures_html(conversation), box


def messages(conversation: Conversation, *, notes: bool) -> list[dict[str, str]]:
    """One column as the chatbot takes it: per turn the message and the answer, as far as it has come."""
    rows: list[dict[str, str]] = []
    for exchange in conversation.exchanges:
        answer = exchange.noted
        if not notes and exchange.plain is not None:
            answer = exchange.plain
        elif not notes and exchange.annotated and exchange.annotated.notes:
            answer = _NOT_ASKED
        rows.append({"role": "user", "content": exchange.prompt})
        rows.append({"role": "assistant", "content": answer or exchange.failed or "…"})
        if answer and exchange.failed:
            rows[-1]["content"] += f"\n\n_{exchange.failed}_"
    return rows


def turn_number(conversation: Conversation, index: Any) -> int | None:
    """The turn that message number ``index`` belongs to (every turn has two messages); None when there is none."""
    message = index[0] if isinstance(index, list | tuple) and index else index
    if type(message) is not int or not 0 <= message < 2 * len(conversation.exchanges):
        return None
    return message // 2


def _chosen(action: Any, concept: str, sense: str, own: Choices, always: Choices) -> tuple[Choices, Choices]:
    """The choices for the message and for the conversation after a button was pressed."""
    match action:
        case "drop":
            return own.drop(concept), always
        case "use":
            return own.pick(concept, sense), always
        case "always":
            return own.forget(concept), always.pick(concept, sense)
        case "forget":
            return own.forget(concept), always.forget(concept)
    return own, always


def _nothing(box: Any = None) -> tuple[Any, ...]:
    """No change, but perhaps to the message box."""
    return (*[gr.skip()] * 6, gr.skip() if box is None else box)


def _over() -> tuple[Any, ...]:
    """The server has forgotten the conversation that the page still shows."""
    gr.Warning("This conversation is over. Send a new message.")
    return _nothing()
