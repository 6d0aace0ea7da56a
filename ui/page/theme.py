"""The page's own look: Gradio's base theme in quiet colours, system fonts (nothing is loaded), both light and dark."""

from __future__ import annotations

from pathlib import Path

import gradio as gr

_FOLDER = Path(__file__).parent
_OWN = _FOLDER / "style.css"
STYLES = [_OWN, *sorted(path for path in _FOLDER.parent.glob("*/*.css") if path != _OWN)]  # the first has the colours
PAGE_SCRIPT = (_FOLDER / "page.js").read_text("utf-8")


def theme() -> gr.themes.Base:
    """Muted blue on slate; every text meets a contrast of 4.5 on its ground (checked by axe in the browser tests)."""
    return gr.themes.Base(
        primary_hue="sky",
        secondary_hue="sky",
        neutral_hue="slate",
        radius_size="sm",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    ).set(
        button_primary_background_fill="#0b5d82",
        button_primary_background_fill_hover="#084a68",
        button_primary_background_fill_dark="#0b5d82",
        button_primary_text_color="white",
        button_primary_text_color_dark="white",
        block_title_text_color="*neutral_700",
        block_title_text_color_dark="*neutral_200",
        block_label_text_color="*neutral_700",
        block_label_text_color_dark="*neutral_200",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
    )
