"""How the page is served: nothing is told, shared or kept beyond what it needs."""

from __future__ import annotations

from typing import Any

import gradio as gr
import pytest

from ui.page.app import Door, start_page


def test_nothing_is_shared_told_or_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {}

    def launch(self: gr.Blocks, **given: Any) -> tuple[None, str, None]:
        options.update(given)
        return None, "http://127.0.0.1:7860", None

    monkeypatch.setattr(gr.Blocks, "launch", launch)
    with gr.Blocks(analytics_enabled=False) as page:
        pass
    start_page(page, Door(7860), block=False)
    assert options["server_name"] == "127.0.0.1"
    assert (options["share"], options["run_history"], options["enable_monitoring"]) == (False, False, False)
    assert options["max_file_size"] == "1kb"
