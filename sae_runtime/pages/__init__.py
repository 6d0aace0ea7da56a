"""What self-contained HTML reports share: style, plots, templates. Nothing in a page is loaded or run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

_FOLDER = Path(__file__).parent


def templates(folder: Path, **settings: Any) -> Environment:
    """The templates in ``folder``, which may include ``page.css``; every expression in them is escaped."""
    return Environment(
        autoescape=True,
        keep_trailing_newline=True,
        loader=FileSystemLoader([folder, _FOLDER]),
        lstrip_blocks=True,
        trim_blocks=True,
        undefined=StrictUndefined,
        **settings,
    )
