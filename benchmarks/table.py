"""How a benchmark's result is printed."""

from __future__ import annotations

import json
from typing import Any


def show(rows: list[dict[str, Any]], *, as_json: bool) -> None:
    """Print ``rows``, which have the same keys, as a Markdown table or as JSON."""
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    print("| " + " | ".join(name.replace("_", " ") for name in rows[0]) + " |\n" + "|---" * len(rows[0]) + "|")
    for row in rows:
        print("| " + " | ".join(_text(value) for value in row.values()) + " |")


def _text(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.4g}" if abs(value) < 1_000 else f"{value:.1f}"
