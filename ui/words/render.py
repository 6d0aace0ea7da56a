"""What the catalog tab shows, as plain values and HTML. Catalog text and people's own words are escaped everywhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from sae_runtime.catalog.browse import SenseSummary
from sae_runtime.catalog.packs import PLACEHOLDER
from sae_runtime.detector.results import MentionReading, Misread, Reading
from sae_runtime.errors import SensecheckError
from sae_runtime.glossary import Glossary, Term
from sae_runtime.glossary.compile import MEANT, OTHER
from ui.markup import marked

HEADERS = ["Concept", "Sense", "Meaning", "Read right", "Lift of its note (nats)", "Harm", "Contexts", "Note"]
DATATYPES = ["str", "str", "str", "number", "number", "number", "number", "str"]
UNTRIED = "not tried yet"
_CONTEXTS = 4  # shown of each sense
_READ_AS = {MEANT: "as you mean it", OTHER: "otherwise"}

Contexts = Mapping[str, Sequence[tuple[str, int, int]]]


def frame_value(rows: Sequence[SenseSummary]) -> dict[str, Any]:
    """The table of senses for a ``gr.Dataframe``: numbers to sort by, and beside them how each cell is displayed."""
    return {
        "headers": HEADERS,
        "data": [_numbers(row) for row in rows],
        "metadata": {"display_value": [_displayed(row) for row in rows]},
    }


def concept_html(rows: Sequence[SenseSummary], contexts: Contexts) -> str:
    """One concept: its senses, what was measured of them in words, some labelled sentences of each.

    Args:
        rows: the concept's senses, at least one.
        contexts: its labelled sentences by sense.
    """
    first = rows[0]
    forms = ", ".join(escape(form) for form in first.forms)
    text = "" if first.text_accuracy is None else f" The words around it alone tell it in {first.text_accuracy:.0%}."
    senses = "".join(_sense(row, contexts.get(row.sense, [])) for row in rows)
    return (
        f'<section class="sc-concept" aria-label="Concept"><h3>{escape(first.concept)}</h3>'
        f'<p class="sc-hint">From the pack {escape(first.pack)}. Found as: {forms}.</p>'
        f"<p>The model's reading is right in {first.read_accuracy:.0%} of sentences kept aside.{text}</p>"
        f"{senses}</section>"
    )


def own_terms_html(glossary: Glossary | None) -> str:
    """The user's own saved words."""
    if glossary is None:
        return hint_html("You have not saved any words yet.")
    rows = "".join(
        f'<tr><th scope="row">{escape(term.term)}</th><td>{escape(term.meaning)}</td>'
        f"<td>{'; '.join(escape(other) for other in term.otherwise)}</td>"
        f"<td>{len(term.examples)} + {len(term.counterexamples)}</td>"
        f"<td>{escape(_filled(term.note_text, term.term))}</td></tr>"
        for term in glossary.terms
    )
    return _table("Your saved words", ["Word", "Means", "Mistaken for", "Sentences", "Note"], rows)


def trial_html(term: Term, read: Sequence[tuple[str, Reading]]) -> str:
    """What a term's readout made of some sentences: a row for each mention of the term.

    Args:
        term: the term that was tried.
        read: sentences with their readings; each sentence was the only message.
    """
    rows = "".join(row for sentence, reading in read for row in _trial_rows(term, sentence, reading))
    table = _table("Tried on your sentences", ["Sentence", "Read", "Flag", "Note"], rows)
    if min(len(term.examples), len(term.counterexamples)) >= 3:
        return table
    return table + hint_html(
        "With three or more sentences on each side the readings become surer; without them a word is seldom flagged."
    )


def hint_html(text: str) -> str:
    """A plain remark."""
    return f'<p class="sc-hint" role="status">{escape(text)}</p>'


def problem_html(error: SensecheckError) -> str:
    """What went wrong and what to do about it."""
    return (
        f'<div class="sc-problem" role="alert"><p><b>{escape(error.message)}</b></p><p>{escape(error.remedy)}</p></div>'
    )


def _numbers(row: SenseSummary) -> list[Any]:
    return [row.concept, row.sense, row.gloss, row.read_accuracy, row.lift, row.harm, row.contexts, _note(row)]


def _displayed(row: SenseSummary) -> list[str]:
    lift = UNTRIED if row.lift is None else f"{row.lift:+.2f}{_interval(row)}"
    harm = UNTRIED if row.harm is None else f"{row.harm:.0%}"
    return [row.concept, row.sense, row.gloss, f"{row.read_accuracy:.0%}", lift, harm, str(row.contexts), _note(row)]


def _note(row: SenseSummary) -> str:
    return _filled(row.note, row.forms[0]) + ("" if row.enabled else " (switched off)")


def _filled(note: str, words: str) -> str:
    return note.replace(PLACEHOLDER, words)


def _interval(row: SenseSummary) -> str:
    if row.lift_low is None or row.lift_high is None:
        return ""
    return f" ({row.lift_low:+.2f} to {row.lift_high:+.2f})"


def _sense(row: SenseSummary, contexts: Sequence[tuple[str, int, int]]) -> str:
    sentences = "".join(f"<li>{marked(*context)}</li>" for context in contexts[:_CONTEXTS])
    return (
        f'<article class="sc-sense"><h4>{escape(row.sense)}: {escape(row.gloss)}</h4>'
        f"<p>Note: {escape(_filled(row.note, row.forms[0]))}</p><p class='sc-hint'>{_measured(row)}</p>"
        f"<p class='sc-hint'>{min(_CONTEXTS, len(contexts))} of {row.contexts} contexts:</p>"
        f"<ul>{sentences}</ul></article>"
    )


def _measured(row: SenseSummary) -> str:
    """What the note did, in words."""
    off = "" if row.enabled else " It is switched off, so this sense is never flagged."
    if row.lift is None:
        return f"The note was {UNTRIED}.{off}"
    words = f"The note changes the log-likelihood of this meaning by {row.lift:+.2f} nats"
    if interval := _interval(row):
        words += f", 95% interval{interval}"
    if row.accuracy_lift is not None:
        words += f", and accuracy by {row.accuracy_lift * 100:+.0f} percentage points"
    if row.harm is not None:
        words += f"; {row.harm:.0%} are right without it and wrong with it"
    return f"{words} ({row.trials} sentences).{off}"


def _trial_rows(term: Term, sentence: str, reading: Reading) -> list[str]:
    flags = {(flag.start, flag.end): flag for flag in reading.misreads if flag.concept == term.slug}
    found = [mention for mention in reading.mentions if mention.concept == term.slug]
    if not found:
        return [f'<tr><td>{escape(sentence)}</td><td colspan="3">The word does not occur here.</td></tr>']
    return [_trial_row(sentence, mention, flags.get((mention.start, mention.end))) for mention in found]


def _trial_row(sentence: str, mention: MentionReading, flag: Misread | None) -> str:
    sense, share = max(mention.reading.items(), key=lambda item: item[1])
    verdict = '<td class="sc-warned">⚑ flagged</td>' if flag else "<td>not flagged</td>"
    return (
        f"<tr><td>{marked(sentence, mention.start, mention.end)}</td>"
        f"<td>{escape(_READ_AS.get(sense, sense))} ({share:.0%})</td>{verdict}"
        f"<td>{escape(flag.note) if flag else ''}</td></tr>"
    )


def _table(caption: str, headers: Sequence[str], rows: str) -> str:
    heads = "".join(f'<th scope="col">{escape(header)}</th>' for header in headers)
    return (
        f'<div class="sc-scroll" tabindex="0" role="region" aria-label="{escape(caption)}"><table class="sc-words">'
        f"<caption>{escape(caption)}</caption><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>"
    )
