"""A conversation as a file: JSON for programs, one self-contained page for people. Nothing is written on the server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sae_runtime.glossary import Glossary
from sae_runtime.pages import templates
from ui.chat.conversation import Choices, Conversation, Exchange
from ui.chat.lookup import Lookup

_TEMPLATE = "export.html.jinja"


def as_data(conversation: Conversation, model: str) -> dict[str, Any]:
    """The conversation as plain data; ``reading`` as :class:`~middleware.Reading` serialises it."""
    return {
        "model": model,
        "always": _choices(conversation.always),
        "exchanges": [_exchange(exchange) for exchange in conversation.exchanges],
    }


def as_json(conversation: Conversation, model: str) -> str:
    """The conversation as JSON text."""
    return json.dumps(as_data(conversation, model), ensure_ascii=False, indent=1)


def as_page(conversation: Conversation, model: str, lookup: Lookup, glossary: Glossary | None = None) -> str:
    """The conversation as an HTML page that loads nothing and runs nothing; every text in it is escaped."""
    exchanges = [
        {
            **row,
            "glosses": {
                m["concept"]: lookup.glosses(m["concept"], glossary) for m in (row["reading"] or {}).get("mentions", ())
            },
        }
        for row in as_data(conversation, model)["exchanges"]
    ]
    return templates(Path(__file__).parent).get_template(_TEMPLATE).render(model=model, exchanges=exchanges)


def _exchange(exchange: Exchange) -> dict[str, Any]:
    annotated = exchange.annotated
    reading = annotated.reading if annotated else None
    return {
        "prompt": exchange.prompt,
        "domain": exchange.domain or None,
        "choices": _choices(exchange.choices),
        "notes": annotated.notes if annotated else [],
        "bypass": annotated.bypass if annotated else None,
        "reading": reading.model_dump(mode="json") if reading else None,
        "answer_with_notes": exchange.noted,
        "answer_without_notes": exchange.plain,
        "tokens_added": exchange.tokens_added,
        "failed": exchange.failed or None,
    }


def _choices(choices: Choices) -> dict[str, Any]:
    return {"picks": dict(choices.picks), "dropped": sorted(choices.dropped)}
