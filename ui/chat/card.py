"""The card of one mention: senses as read and as meant, why, the note, what can be done about it, what decided."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from middleware import MentionReading, Misread, Reading
from sae_runtime.catalog.view import FeatureDetail
from sae_runtime.detector.results import FeatureActivation
from sae_runtime.glossary import Glossary
from ui.chat.conversation import Choices
from ui.chat.lookup import Lookup
from ui.markup import marked

_CONTEXTS = 2


def misread_at(mention: MentionReading, reading: Reading) -> Misread | None:
    """The misread at ``mention``, None when it is not flagged."""
    place = (mention.message, mention.start, mention.end)
    return next((m for m in reading.misreads if (m.message, m.start, m.end) == place), None)


def card_html(
    number: int,
    mention: MentionReading,
    misread: Misread | None,
    lookup: Lookup,
    choices: Choices,
    glossary: Glossary | None,
    *,
    shown: bool,
) -> str:
    """The card of mention ``number``; buttons carry what they do in ``data-`` attributes (see pane.js)."""
    glosses = lookup.glosses(mention.concept, glossary)
    parts = [_heading(mention, misread, choices), _senses(mention, misread, glosses)]
    if misread:
        parts += [_why(misread, glosses), f'<p class="sc-note">{escape(misread.note)}</p>']
    parts.append(_actions(mention, misread, glosses, choices))
    if misread and misread.features:
        parts.append(_deciding(misread, lookup))
    hidden = "" if shown else " hidden"
    flagged = " sc-flagged" if misread else ""
    name = escape(f"How “{mention.text}” was read")
    return f'<section class="sc-card{flagged}" id="sc-card-{number}" aria-label="{name}"{hidden}>{"".join(parts)}</section>'


def _heading(mention: MentionReading, misread: Misread | None, choices: Choices) -> str:
    chosen = choices.of(mention.concept)
    if misread is None:
        verdict = "no note"
    elif chosen:
        verdict = "noted, as you chose"
    else:
        verdict = "probably misread at first" if misread.early else "probably misread"
    return f'<h3><span aria-hidden="true">{"⚑ " if misread else ""}</span>{escape(mention.text)} <small>{verdict}</small></h3>'


def _senses(mention: MentionReading, misread: Misread | None, glosses: Mapping[str, str]) -> str:
    """The senses with their shares; the first impression has a column where the flag rests on it."""
    columns = [("the model read", "read", mention.reading), ("you seem to mean", "meant", mention.intended)]
    if misread and misread.early:
        columns.insert(0, ("the model read at first", "read", mention.early))
    rows = "".join(
        f'<tr><th scope="row">{escape(glosses.get(sense, "") or sense)}</th>'
        + "".join(f"<td>{_bar(shares.get(sense, 0.0), kind)}</td>" for _, kind, shares in columns)
        + "</tr>"
        for sense, _ in sorted(mention.reading.items(), key=lambda item: -item[1])
    )
    heads = "".join(f'<th scope="col">{name}</th>' for name in ("it can mean", *(name for name, _, _ in columns)))
    return f'<table class="sc-senses"><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>'


def _bar(share: float, kind: str) -> str:
    return f'<span class="sc-bar sc-{kind}" style="--sc-share:{share:.2f}">{share:.0%}</span>'


def _why(misread: Misread, glosses: Mapping[str, str]) -> str:
    meant = escape(glosses.get(misread.intended, "") or misread.intended)
    because = ", ".join(f"<b>{escape(reason)}</b>" for reason in misread.evidence) or "the context"
    return f"<p>You seem to mean <b>{meant}</b>, because of {because}. This was added to your message:</p>"


def _actions(mention: MentionReading, misread: Misread | None, glosses: Mapping[str, str], choices: Choices) -> str:
    concept = escape(mention.concept)
    senses = [sense for sense in mention.reading if misread is None or sense != misread.intended]
    options = "".join(
        f'<option value="{escape(sense)}">{escape(glosses.get(sense, "") or sense)}</option>' for sense in senses
    )
    buttons = []
    if misread:
        buttons.append(button("drop", concept, "Drop this note"))
        if choices.of(mention.concept) != misread.intended:
            buttons.append(button("always", concept, "Always note this here", misread.intended))
    if choices.of(mention.concept) is not None:
        buttons.append(button("forget", concept, "Undo my choice"))
    label = "Use another sense" if misread else "Note a sense yourself"
    chooser = (
        f'<span class="sc-chooser"><label>{label} <select class="sc-select">{options}</select></label> '
        f"{button('use', concept, 'Use')}</span>"
        if options
        else ""
    )
    return f'<div class="sc-actions">{"".join(buttons)}{chooser}</div>'


def button(action: str, concept: str, text: str, sense: str = "") -> str:
    """A button that makes a choice about ``concept`` (escaped by the caller)."""
    of = f' data-sense="{escape(sense)}"' if sense else ""
    return (
        f'<button type="button" class="sc-button" data-action="{action}" data-concept="{concept}"{of}>{text}</button>'
    )


def _deciding(misread: Misread, lookup: Lookup) -> str:
    items = "".join(_feature(feature, lookup.feature(feature.index)) for feature in misread.features)
    count = len(misread.features)
    return (
        f"<details><summary>{count} feature{'s' if count != 1 else ''} of the model decided this</summary>"
        f'<ul class="sc-deciding">{items}</ul></details>'
    )


def _feature(feature: FeatureActivation, detail: FeatureDetail | None) -> str:
    facts = [f"activation {feature.activation:.2f}"]
    contexts = ""
    if detail:
        facts.append(f"fires on {detail.density:.2%} of tokens")
        score = next((v for v in detail.validations if v["split"] == "test"), None)
        if score and score["predicted"]:
            facts.append(f"label right in {score['precision']:.0%} of unseen cases")
        contexts = "".join(f"<li>{marked(e['text'], e['start'], e['end'])}</li>" for e in detail.examples[:_CONTEXTS])
    return (
        f'<li><button type="button" class="sc-link" data-feature="{feature.index}">{feature.index}: {escape(feature.label)}'
        f'</button><span class="sc-hint"> {", ".join(facts)}</span><ul class="sc-contexts">{contexts}</ul></li>'
    )
