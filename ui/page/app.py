"""Layout and events of the chat page."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from middleware import Annotated, SAEAnnotator, ServerSource
from sae_runtime.errors import ServerError
from ui.backend import Backend
from ui.chat.conversation import Exchange, Turn, run_turn
from ui.chat.render import note_html, reading_html

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # before gradio is imported

import gradio as gr

_STYLE = Path(__file__).with_name("style.css")
_MAX_TOKENS = 384
_READING_SECONDS = 20.0
EXAMPLES = [  # prompt, declared domain; the last one is read as it is meant
    ["How often should I clean my mouse?", "biology"],
    [
        "The pitcher took a nasty knock at Saturday's baseball picnic, and now lemonade leaks through a crack near the "
        "handle. Which glue is food safe?",
        "",
    ],
    ["The bass was too heavy to carry up the stairs. What should I do?", ""],
]


def launch(backend: Backend, *, port: int) -> None:
    """Serve the chat on loopback until interrupted."""
    annotator = SAEAnnotator(
        source=ServerSource(backend.url, api_key=backend.api_key, tokens=True), deadline=_READING_SECONDS, grace=None
    )
    start_page(build_page(annotator, backend), port=port, block=True)


def start_page(page: gr.Blocks, *, port: int, block: bool) -> str:
    """Serve ``page`` on loopback and return its address; with ``block`` only when it ends. Port 0 picks a free one.

    Raises:
        ServerError: the port is taken.
    """
    try:
        _, url, _ = page.launch(
            server_name="127.0.0.1",
            server_port=port or None,
            share=False,
            ssr_mode=False,  # one process, no Node.js
            footer_links=[],
            max_file_size="1kb",  # nothing is uploaded here
            prevent_thread_lock=not block,
            quiet=not block,
            theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),  # no web fonts
            css_paths=[_STYLE],
        )
    except OSError as error:
        raise ServerError(f"The chat cannot listen on port {port}: {error}.", "Choose another with --port.") from error
    return url


def build_page(annotator: SAEAnnotator, backend: Backend) -> gr.Blocks:
    """The page; its state lives in the browser session, so that users never see each other's conversation."""
    model = backend.chat_model(max_tokens=_MAX_TOKENS)

    async def respond(prompt: str, exchanges: list[Exchange], domain: str, compare: bool) -> AsyncIterator[Any]:
        prompt = prompt.strip()
        if not prompt:
            yield gr.skip()
            return
        reader = annotator.model_copy(update={"domain": domain.strip() or None})
        turn: Turn | None = None
        async for turn in run_turn(reader, model, exchanges, prompt, compare=compare):
            yield _view([*exchanges, turn.exchange], turn.annotated, turn.exchange, "")

    with gr.Blocks(title="Sensecheck", analytics_enabled=False) as page:
        exchanges = gr.State([])
        gr.Markdown(f"# Sensecheck\nHow **{backend.model}** read your words, before it answers.")
        with gr.Row():
            with gr.Column(scale=3):
                chat = gr.Chatbot(label="Conversation (with notes)", height=330, elem_id="sc-chat", buttons=["copy"])
                twin = gr.Chatbot(
                    label="The same without notes", height=230, visible=False, elem_id="sc-twin", buttons=["copy"]
                )
                prompt = gr.Textbox(
                    label="Your message",
                    placeholder="Ask something …",
                    lines=1,  # Enter sends; Shift-Enter makes a new line
                    max_lines=6,
                    elem_id="sc-prompt",
                    submit_btn=True,
                    stop_btn=True,
                )
                with gr.Row():
                    compare = gr.Checkbox(
                        value=True, label="Show the answer without notes beside it", elem_id="sc-compare"
                    )
                    domain = gr.Textbox(
                        label="Declared domain (optional)", placeholder="e.g. finance", elem_id="sc-domain"
                    )
                    clear = gr.Button("New conversation", elem_id="sc-clear")
                gr.Examples(EXAMPLES, [prompt, domain], label="Examples")
            with gr.Column(scale=2):
                gr.Markdown("### How the model read it")
                pane = gr.HTML(reading_html(None, ""), elem_id="sc-reading")
                gr.Markdown("### Added to your prompt")
                notes = gr.HTML(note_html(None), elem_id="sc-note")
        outputs = [exchanges, chat, twin, pane, notes, prompt]
        running = prompt.submit(
            respond, [prompt, exchanges, domain, compare], outputs, show_progress="hidden", api_name="ask"
        )
        prompt.stop(None, cancels=[running])
        for cleared in (clear.click, chat.clear):
            cleared(lambda: _view([], None, None, ""), None, outputs, cancels=[running], api_name=False)
    page.queue(max_size=32, default_concurrency_limit=4)
    return page


def _view(
    exchanges: list[Exchange], annotated: Annotated | None, current: Exchange | None, box: str
) -> tuple[Any, ...]:
    """Values of all outputs for a state of the conversation."""
    history: list[dict[str, str]] = []
    for exchange in exchanges:
        history.append({"role": "user", "content": exchange.prompt})
        if exchange.noted:
            history.append({"role": "assistant", "content": exchange.noted})
    plain = current.plain if current else None
    twin = [] if plain is None or current is None else [
        {"role": "user", "content": current.prompt}, {"role": "assistant", "content": plain or "…"}
    ]  # fmt: skip
    return (
        exchanges,
        history,
        gr.update(value=twin, visible=plain is not None),
        reading_html(annotated, current.prompt if current else ""),
        note_html(annotated),
        box,
    )
