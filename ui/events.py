"""What the tabs' Gradio events share."""

from __future__ import annotations

from typing import Any

import gradio as gr

QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
"""Options of events that belong to the page alone: no veil over its parts, no public route."""


def sent(event: gr.EventData) -> dict[str, Any]:
    """What the browser sent with an event of the page's own; it may have sent anything, then nothing counts."""
    return event._data if isinstance(event._data, dict) else {}
