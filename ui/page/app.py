"""The page: its tabs, and how it is served."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.middleware import Middleware

from middleware import SAEAnnotator, ServerSource
from sae_runtime.detector.artefacts import Artefacts
from sae_runtime.errors import InputError, ServerError
from sae_runtime.paths import LOOPBACK, cache_dir
from ui.backend import Backend
from ui.chat.lookup import Lookup
from ui.chat.tab import MAX_TOKENS, TURNS_AT_ONCE, chat_tab
from ui.events import QUIET, sent
from ui.features.tab import feature_tab
from ui.page.headers import KeepToItself
from ui.page.theme import PAGE_SCRIPT, STYLES, theme
from ui.words.tab import words_tab

_READING_SECONDS = 20.0
_QUEUE = 64  # requests that wait
_SESSIONS = 500  # conversations that are kept in memory at most
Accounts = list[tuple[str, str]]


@dataclass(frozen=True)
class Door:
    """Where the page is served, and to whom.

    Attributes:
        port: 0 picks a free one.
        host: loopback unless ``accounts`` are given.
        accounts: user names and passwords; None: everyone who reaches the page.
        root_path: path under which a reverse proxy shows the page.
    """

    port: int
    host: str = "127.0.0.1"
    accounts: Accounts | None = None
    root_path: str | None = None

    def check(self) -> None:
        """Refuse to show the page to the network without a password.

        Raises:
            InputError: it would be.
        """
        if self.host not in LOOPBACK and not self.accounts:
            raise InputError(
                f"The chat would be open to everyone who reaches {self.host}.",
                "Give --auth FILE (lines of user:password), or stay on loopback behind a reverse proxy "
                "(with --auth, too, if own words must not be shared).",
            )


def launch(backend: Backend, opened: Artefacts, door: Door) -> None:
    """Serve the chat until interrupted."""
    door.check()
    source = ServerSource(backend.url, api_key=backend.api_key, tokens=True)
    annotator = SAEAnnotator(source=source, deadline=_READING_SECONDS, grace=None)
    start_page(build_page(annotator, backend, opened), door, block=True)


def start_page(page: gr.Blocks, door: Door, *, block: bool) -> str:
    """Serve ``page`` and return its address; with ``block`` only when it ends.

    Raises:
        ServerError: the port is taken.
    """
    try:
        _, url, _ = page.launch(
            server_name=door.host,
            server_port=door.port or None,
            root_path=door.root_path,
            auth=door.accounts,
            share=False,
            ssr_mode=False,  # one process, no Node.js
            run_history=False,  # else the browser keeps every message
            enable_monitoring=False,
            footer_links=[],
            max_file_size="1kb",  # nothing is uploaded here
            prevent_thread_lock=not block,
            quiet=not block,
            theme=theme(),
            css_paths=STYLES,
            app_kwargs={"middleware": [Middleware(KeepToItself)]},
            state_session_capacity=_SESSIONS,
            js=PAGE_SCRIPT,
        )
    except OSError as error:
        remedy = "Choose another with --port."
        raise ServerError(f"The chat cannot listen on {door.host}:{door.port}: {error}.", remedy) from error
    return url


def build_page(
    annotator: SAEAnnotator,
    backend: Backend,
    opened: Artefacts,
    *,
    overlays: Path | None = None,
    max_tokens: int = MAX_TOKENS,
) -> gr.Blocks:
    """The page.

    Args:
        annotator: reads prompts; its source must read every token.
        backend: the served model that answers.
        opened: the catalog and the dictionary that the server reads with.
        overlays: folder of the words that people add; None: in the user's cache.
        max_tokens: length limit of an answer.
    """
    lookup = Lookup(opened.view, opened.catalog)
    labels = {index: feature.label for index, feature in opened.view.features.items()}
    with gr.Blocks(title="Sensecheck", analytics_enabled=False) as page:
        gr.HTML(_head(backend.model), apply_default_css=False)
        with gr.Tabs() as tabs:
            chat_here = gr.Tab("Chat", id="chat")
            features_here = gr.Tab("Features", id="features")
            with gr.Tab("Words", id="words"):
                words = words_tab(lookup.catalog, annotator, overlays or cache_dir() / "words")
            with features_here:
                features = feature_tab(lookup.catalog, opened.load_sae(), labels)
            with chat_here:
                chat = chat_tab(annotator, backend, lookup, words.glossary, max_tokens=max_tokens)

        def open_feature(event: gr.EventData) -> tuple[Any, ...]:
            index = sent(event).get("index")
            return gr.Tabs(selected="features"), features.show(index if type(index) is int else -1)

        chat.pane.feature(open_feature, None, [tabs, features.page], **QUIET)
    page.queue(max_size=_QUEUE, default_concurrency_limit=TURNS_AT_ONCE)
    return page


def _head(model: str) -> str:
    return (
        f'<header class="sc-head"><h1>Sensecheck</h1><p>Words have several senses. This page shows how '
        f"<b>{escape(model)}</b> took yours before it answered, and tells it what you mean where it went astray.</p></header>"
    )
