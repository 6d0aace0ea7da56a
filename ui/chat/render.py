"""The reading as HTML. Every word of prompt and catalog is escaped: both are untrusted."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import groupby

from middleware import Annotated, Misread, Reading
from sae_runtime.detector.results import TokenReading
from sae_runtime.glossary import Glossary
from ui.chat.card import button, card_html, misread_at
from ui.chat.conversation import Choices, Conversation, Exchange
from ui.chat.lookup import Lookup

_EMPTY = (
    '<p class="sc-hint">Ask something, or take an example. Before the model answers, your words appear here as it read '
    "them: a word that it seems to have taken the wrong way is flagged, and a short note is added to your message.</p>"
)
_NONE = Choices()
_TIP = "Point at a word, or move through them with the arrow keys, to see what the model noticed there."


def reading_html(
    exchange: Exchange | None,
    lookup: Lookup,
    turn: int = 0,
    general: Choices = _NONE,
    glossary: Glossary | None = None,
) -> str:
    """The reading pane of one turn: state line, tokens, and one card per mention.

    Args:
        exchange: the turn; None for an empty conversation.
        lookup: meanings and features.
        turn: its number, which choices on its cards name.
        general: choices that hold for the whole conversation.
        glossary: the user's own terms.
    """
    if exchange is None:
        return _EMPTY
    if exchange.annotated is None:
        said = "Stopped before it was read." if exchange.failed else "Reading your words …"
        return f'<p class="sc-state sc-busy" role="status">{said}</p>'
    choices = exchange.choices.over(general)
    reading = exchange.annotated.reading
    if reading is None:
        why = escape(exchange.annotated.bypass or "")
        body = f'<p class="sc-state sc-bypass" role="status"><b>Not read this time</b> ({why}). The answer is unaffected.</p>'
    else:
        body = _read(reading, lookup, choices, glossary)
    return f'<div data-turn="{turn}">{body}{_dropped(choices)}</div>'


def _read(reading: Reading, lookup: Lookup, choices: Choices, glossary: Glossary | None) -> str:
    misreads = [misread_at(mention, reading) for mention in reading.mentions]
    opened = next((number for number, misread in enumerate(misreads) if misread), None)
    cards = "".join(
        card_html(number, mention, misread, lookup, choices, glossary, shown=number == opened)
        for number, (mention, misread) in enumerate(zip(reading.mentions, misreads, strict=True))
    )
    return f'{_state(reading)}{_tokens(reading, misreads, opened)}<p class="sc-tip" id="sc-tip">{_TIP}</p>{cards}'


def note_html(annotated: Annotated | None) -> str:
    """The exact text that was added to the prompt."""
    if annotated is None or not annotated.notes:
        return '<p class="sc-hint">No note was added.</p>'
    items = "".join(f"<li>{escape(note)}</li>" for note in dict.fromkeys(annotated.notes))
    return f'<ul class="sc-notes" aria-label="Notes added to the prompt">{items}</ul>'


def figures_html(conversation: Conversation) -> str:
    """One line of figures about the conversation so far."""
    done = [exchange for exchange in conversation.exchanges if exchange.annotated]
    readings = [e.annotated.reading for e in done if e.annotated and e.annotated.reading]
    if not done:
        return '<p class="sc-totals sc-hint">Figures of this conversation appear here.</p>'
    took = readings[-1].timings_ms.get("total", 0) if readings else None
    added = [exchange.tokens_added for exchange in done]
    parts = {
        "last inspection": "-" if took is None else f"{took:.0f} ms",
        "messages flagged": f"{sum(bool(r.misreads) for r in readings)} of {len(done)}",
        "not read": str(len(done) - len(readings)),
        "tokens added by notes": str(sum(count or 0 for count in added)),
    }
    items = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in parts.items())
    return f'<dl class="sc-totals" aria-label="Figures of this conversation">{items}</dl>'


def _state(reading: Reading) -> str:
    count = len(reading.misreads)
    if count:
        text = f"<b>{count} word{'s' if count != 1 else ''} noted.</b> Open the underlined words below."
    elif reading.mentions:
        text = "<b>Nothing to note.</b> The model took your words as you seem to mean them, or it is not sure enough to say."
    else:
        text = "<b>Nothing to note.</b> None of your words is in the catalog of words with several senses."
    cut = " Only the head of your message fits the model and was read." if reading.truncated else ""
    kind = "sc-noted" if count else "sc-quiet"
    return f'<p class="sc-state {kind}" role="status">{text}{cut}</p>'


def _tokens(reading: Reading, misreads: Sequence[Misread | None], opened: int | None) -> str:
    """The last read message's tokens, shaded by their strongest feature; those of a mention form a button for its card."""
    message = max((t.message for t in reading.tokens if t.message is not None), default=None)
    tokens = [t for t in reading.tokens if t.message == message and t.message is not None]
    peak = max((f.activation for t in tokens for f in t.features), default=1.0) or 1.0
    parts = []
    for number, group in groupby(tokens, lambda token: _mention_of(token, reading)):
        spans = "".join(_token(token, peak, alone=number is None) for token in group)
        if number is None:
            parts.append(spans)
        else:
            flagged = " sc-flagged" if misreads[number] else ""
            spoken = '<span class="sc-spoken"> (noted)</span>' if misreads[number] else ""
            parts.append(
                f'<button type="button" class="sc-word{flagged}" aria-expanded="{str(number == opened).lower()}" '
                f'aria-controls="sc-card-{number}" aria-describedby="sc-tip">{spans}{spoken}</button>'
            )
    return f'<div class="sc-tokens" role="group" aria-label="Your message as the model read it">{"".join(parts)}</div>'


def _dropped(choices: Choices) -> str:
    """Concepts that are left alone; they are not even looked for, so they have no card."""
    return "".join(
        f'<p class="sc-actions">“{escape(concept)}” is left alone, as you chose. '
        f"{button('forget', escape(concept), 'Undo my choice')}</p>"
        for concept in sorted(choices.dropped)
    )


def _mention_of(token: TokenReading, reading: Reading) -> int | None:
    """The number of the mention that ``token`` is part of."""
    for number, mention in enumerate(reading.mentions):
        if mention.message == token.message and token.start < mention.end and token.end > mention.start:
            return number
    return None


def _token(token: TokenReading, peak: float, *, alone: bool) -> str:
    """``alone``: not part of a button, so the arrow keys reach it by itself."""
    strength = max((f.activation for f in token.features), default=0.0) / peak
    tip = (
        " · ".join(f"{f.label} ({f.activation:.1f})" for f in token.features[:3]) or "no catalogued feature fires here"
    )
    focus = ' tabindex="-1" aria-describedby="sc-tip"' if alone else ""
    return (
        f'<span class="sc-token"{focus} style="--sc-strength:{strength:.2f}" data-tip="{escape(tip)}">'
        f"{escape(token.text)}</span>"
    )
