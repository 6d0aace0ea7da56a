"""The reading as HTML. Every word of prompt and catalog is escaped: both are untrusted."""

from __future__ import annotations

from html import escape

from middleware import Annotated, MentionReading, Misread, Reading

_EMPTY = '<p class="sc-hint">Ask something. Your words appear here as the model read them.</p>'


def reading_html(annotated: Annotated | None, prompt: str) -> str:
    """The side pane: state line, the prompt's tokens, flags, quiet mentions."""
    if annotated is None:
        return '<p class="sc-hint" role="status">Reading your words …</p>' if prompt else _EMPTY
    if annotated.reading is None:
        return f'<p class="sc-bypass" role="status">Not read this time ({escape(annotated.bypass or "")}). The answer is unaffected.</p>'
    reading = annotated.reading
    parts = [_state(reading), _tokens(reading)]
    parts += [_flag(misread) for misread in reading.misreads]
    quiet = [m for m in reading.mentions if not any(_same(m, f) for f in reading.misreads)]
    if quiet:
        parts.append('<h3 class="sc-title">Read as intended, or left alone</h3>')
        parts += [_mention(mention) for mention in quiet]
    return "".join(parts)


def note_html(annotated: Annotated | None) -> str:
    """The exact text that was added to the prompt."""
    if annotated is None or not annotated.notes:
        return '<p class="sc-hint">No note was added.</p>'
    items = "".join(f"<li>{escape(note)}</li>" for note in dict.fromkeys(annotated.notes))
    return f'<ul class="sc-notes" aria-label="Notes added to the prompt">{items}</ul>'


def _state(reading: Reading) -> str:
    count = len(reading.misreads)
    text = f"{count} misread word{'s' if count != 1 else ''}" if count else "Nothing is flagged"
    cut = " Only the head of the prompt fits the model and was read." if reading.truncated else ""
    took = reading.timings_ms.get("total", 0)
    return (
        f'<p class="sc-state" role="status"><b>{text}.</b>{cut} <span class="sc-hint">Read in {took:.0f} ms.</span></p>'
    )


def _tokens(reading: Reading) -> str:
    """The last read message's tokens, shaded by their strongest feature; flagged ones are underlined too."""
    message = max((t.message for t in reading.tokens if t.message is not None), default=None)
    tokens = [t for t in reading.tokens if t.message == message and t.message is not None]
    peak = max((f.activation for t in tokens for f in t.features), default=1.0) or 1.0
    spans = []
    for token in tokens:
        flagged = any(
            f.message == token.message and token.start < f.end and token.end > f.start for f in reading.misreads
        )
        strength = max((f.activation for f in token.features), default=0.0) / peak
        tip = (
            "; ".join(f"{f.index}: {f.label} ({f.activation:.1f})" for f in token.features[:4])
            or "no catalogued feature"
        )
        mark = " sc-flagged" if flagged else ""
        spans.append(
            f'<span class="sc-token{mark}" style="--sc-strength:{strength:.2f}" title="{escape(tip, quote=True)}">'
            f"{escape(token.text)}</span>"
        )
    return f'<div class="sc-tokens" aria-label="Your prompt as the model read it">{"".join(spans)}</div>'


def _flag(misread: Misread) -> str:
    features = "".join(
        f"<li><code>{f.index}</code> {escape(f.label)} <span class='sc-hint'>{f.activation:.2f}</span></li>"
        for f in misread.features
    )
    because = ", ".join(escape(word) for word in misread.evidence) or "the context"
    return (
        f'<section class="sc-card" aria-label="Misread word"><h3>⚑ {escape(misread.text)}</h3>'
        f"<p>Read as <b>{escape(misread.read_as)}</b> ({misread.p_read_as:.0%}), "
        f"meant <b>{escape(misread.intended)}</b> ({misread.p_intended:.0%}) because of {because}.</p>"
        f"<p>Note: {escape(misread.note)}</p>"
        f"<details><summary>Features that decided</summary><ul>{features}</ul></details></section>"
    )


def _mention(mention: MentionReading) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escape(sense)}</th><td>{_bar(share, "read")}</td>'
        f"<td>{_bar(mention.intended[sense], 'intended')}</td></tr>"
        for sense, share in mention.reading.items()
    )
    return (
        f'<table class="sc-mention"><caption>{escape(mention.text)}</caption>'
        f"<thead><tr><td></td><th>read</th><th>intended</th></tr></thead><tbody>{rows}</tbody></table>"
    )


def _bar(share: float, kind: str) -> str:
    return f'<span class="sc-bar sc-{kind}" style="--sc-share:{share:.2f}">{share:.0%}</span>'


def _same(mention: MentionReading, misread: Misread) -> bool:
    return (mention.message, mention.start, mention.end) == (misread.message, misread.start, misread.end)
