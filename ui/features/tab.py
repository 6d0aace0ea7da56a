"""The page of one feature, and the search that leads to it. Every word of the catalog is escaped: it is untrusted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import gradio as gr

from sae_runtime.catalog.location import CatalogLocation
from sae_runtime.catalog.search import FeatureHit, nearest_features, search_features
from sae_runtime.catalog.view import FeatureDetail, feature_detail
from sae_runtime.errors import SensecheckError
from sae_runtime.sae import SAE
from ui.events import QUIET, sent
from ui.markup import marked

_HINT = '<p class="sc-hint">Search for a word, a concept or an index, then choose a feature.</p>'
_NOT_MEASURED = '<span class="sc-hint">not measured</span>'
_WIDTH, _HEIGHT = 400, 100  # of the histogram, in its own units
_STRENGTHS = (  # name, least activation as a share of the strongest one
    ("Strong: at least two thirds of its strongest activation", 2 / 3),
    ("Middle: one to two thirds", 1 / 3),
    ("Weak: less than a third", 0.0),
)
_SPLITS = {
    "validation": "Description on the validation split, text that was not used to write it; decides whether it is validated",
    "test": "Description on the test split, text that decided nothing",
}
_WHERE = {
    "index": "its index",
    "label": "label or description",
    "concept": "a concept that uses it",
    "context": "a text on which it fires",
}
# The buttons are replaced with the page, the element around them is not: it listens for all of them.
_CLICKS = """
element.addEventListener('click', (event) => {
  const button = event.target.closest('[data-feature], [data-concept]');
  if (!button) return;
  if ('feature' in button.dataset) trigger('pick', {index: Number(button.dataset.feature)});
  else trigger('concept', {slug: button.dataset.concept});
});
"""


@dataclass(frozen=True)
class FeatureTab:
    """What others need of the feature tab.

    Attributes:
        page: holds the page of one feature; set its value to ``show(index)`` to open one from elsewhere.
        search: the search box; its value is the query.
        show: HTML of the feature with an index in the full dictionary, or of a sentence that it is not catalogued.
    """

    page: gr.HTML
    search: gr.Textbox
    show: Callable[[int], str]


def feature_tab(catalog: CatalogLocation, sae: SAE, labels: Mapping[int, str]) -> FeatureTab:
    """Search box, hits and page with their events; call it inside ``gr.Blocks`` or ``gr.Tab``.

    A click on a feature shows its page, a click on a concept searches for it. Enter opens the best hit.

    Args:
        catalog: where features are looked up.
        sae: the dictionary whose directions say what is near.
        labels: of the catalogued features, by index in the full dictionary.
    """

    def show(index: int) -> str:
        detail = feature_detail(catalog, index) if index in labels else None
        if detail is None:
            return f'<p class="sc-hint" role="status">Feature {index} is not catalogued.</p>'
        near = nearest_features(sae, index) if index in sae.latents else []
        return feature_html(detail, [(other, labels.get(other, "not catalogued"), cosine) for other, cosine in near])

    def found_by(query: str) -> list[FeatureHit]:
        try:
            return search_features(catalog, query)
        except SensecheckError as error:
            gr.Warning(str(error))
            return []

    def find(query: str) -> str:
        return hits_html(found_by(query)) if query.strip() else ""

    def find_and_open(query: str) -> tuple[str, Any]:
        found = found_by(query)
        return hits_html(found) if query.strip() else "", show(found[0].index) if found else gr.skip()

    def pick(event: gr.EventData) -> str:
        index = sent(event).get("index")
        return show(index) if isinstance(index, int) else _HINT

    def look_up(event: gr.EventData) -> str:
        return str(sent(event).get("slug") or "")

    with gr.Row():
        with gr.Column(scale=2):
            search = gr.Textbox(
                label="Find a feature",
                placeholder="index, word, concept, text …",
                max_lines=1,
                elem_id="sc-feature-search",
            )
            hits = gr.HTML("", elem_id="sc-feature-hits", js_on_load=_CLICKS, apply_default_css=False)
        with gr.Column(scale=3):
            page = gr.HTML(_HINT, elem_id="sc-feature", js_on_load=_CLICKS, apply_default_css=False)
    search.change(find, search, hits, trigger_mode="always_last", **QUIET)
    search.submit(find_and_open, search, [hits, page], **QUIET)
    for clicked in (hits, page):
        clicked.pick(pick, None, page, **QUIET)
    page.concept(look_up, None, search, **QUIET)
    return FeatureTab(page, search, show)


def feature_html(detail: FeatureDetail, nearest: Sequence[tuple[int, str, float]]) -> str:
    """The page of one feature.

    Args:
        detail: what the catalog says of it.
        nearest: index, label and cosine of the closest features, closest first.
    """
    state = "Validated: its description passed all gates." if detail.validated else "Not validated."
    near = [(index, label, f"{cosine:.2f}") for index, label, cosine in nearest]
    return (
        f'<article class="sc-feature"><h2>Feature {detail.index}: {escape(detail.label)}</h2>'
        f"<p>{escape(detail.description)}</p>"
        f'<p class="{"sc-state" if detail.validated else "sc-unproven"}">{state}</p>'
        f"{_section('How strongly it fires', histogram_html(detail))}"
        f"{_section('Where it fires', _contexts(detail))}"
        f"{_section('Tokens that its direction promotes', _promoted(detail.promoted))}"
        f"{_section('Nearest features, by cosine of directions', _features(near))}"
        f"{_section('Concepts that use it', _concepts(detail.concepts))}"
        f"{_section('Figures, and how each was obtained', _figures(detail))}</article>"
    )


def hits_html(hits: Sequence[FeatureHit]) -> str:
    """What a search found, each feature as a button with what matched."""
    if not hits:
        return '<p class="sc-hint" role="status">No feature matches.</p>'
    items = [
        (hit.index, hit.label, _WHERE[hit.where] + (", validated" if hit.validated else ""))
        for hit in hits
    ]  # fmt: skip
    count = f"{len(hits)} feature{'s' if len(hits) != 1 else ''}"
    return (
        f'<p class="sc-hint" role="status">{count}, best matches first</p><div class="sc-hits">{_features(items)}</div>'
    )


def histogram_html(detail: FeatureDetail) -> str:
    """The activation histogram as a drawing, or a sentence that there is none."""
    if detail.histogram is None:
        return '<p class="sc-hint">The activation histogram was not measured for this catalog.</p>'
    edges, counts = detail.histogram["edges"], detail.histogram["counts"]
    peak, step = max(counts, default=0) or 1, _WIDTH / max(1, len(counts))
    bars = []
    for number, count in enumerate(counts):
        height = max(1.0, _HEIGHT * count / peak) if count else 0.0  # a rare strength is still seen
        bars.append(
            f'<rect x="{number * step + 1:.1f}" y="{_HEIGHT - height:.1f}" width="{step - 2:.1f}" height="{height:.1f}" '
            f'fill="var(--sc-accent)"><title>{edges[number]:.2f} to {edges[number + 1]:.2f}: {count:,} tokens</title></rect>'
        )
    said = f"Histogram of {sum(counts):,} activations from 0 to {edges[-1]:.2f}; the fullest bin holds {peak:,} tokens"
    return (
        f'<figure class="sc-histogram"><svg viewBox="0 0 {_WIDTH} {_HEIGHT + 2}" role="img" aria-label="{said}">'
        f'{"".join(bars)}<line x1="0" x2="{_WIDTH}" y1="{_HEIGHT + 1}" y2="{_HEIGHT + 1}" stroke="var(--sc-line)"/></svg>'
        f"<figcaption><span>0</span><span>{sum(counts):,} corpus tokens by activation</span>"
        f"<span>{edges[-1]:.2f}</span></figcaption></figure>"
    )


def _section(title: str, body: str) -> str:
    return f'<section><h3 class="sc-title">{title}</h3>{body}</section>'


def _contexts(detail: FeatureDetail) -> str:
    """Example texts in groups by strength; each belongs to the first group whose bound it reaches."""
    groups: dict[str, list[str]] = {name: [] for name, _ in _STRENGTHS}
    for example in detail.examples:
        share = example["activation"] / detail.max_activation if detail.max_activation > 0 else 0.0
        name = next((name for name, least in _STRENGTHS if share >= least), _STRENGTHS[-1][0])
        groups[name].append(_context(example))
    parts = [f"<h4>{name}</h4><ul>{''.join(items)}</ul>" for name, items in groups.items() if items]
    return "".join(parts) or '<p class="sc-hint">No context was kept.</p>'


def _context(example: Mapping[str, Any]) -> str:
    text = example["text"].replace("\n", "⏎")  # as long as before, so that the offsets still fit
    return (
        f'<li class="sc-context">{marked(text, example["start"], example["end"])} '
        f'<span class="sc-hint">{example["activation"]:.2f}</span></li>'
    )


def _promoted(tokens: Iterable[str]) -> str:
    chips = "".join(f'<li class="sc-chip">{escape(token)}</li>' for token in tokens)
    return f'<ul class="sc-chips">{chips}</ul>' if chips else f"<p>{_NOT_MEASURED}</p>"


def _features(items: Iterable[tuple[int, str, str]]) -> str:
    """Index, label and a remark of features, as buttons."""
    rows = "".join(
        f'<li><button type="button" class="sc-link" data-feature="{index}">{index}: {escape(label)}</button> '
        f'<span class="sc-hint">{escape(remark)}</span></li>'
        for index, label, remark in items
    )
    return f'<ul class="sc-list">{rows}</ul>' if rows else '<p class="sc-hint">None.</p>'


def _concepts(slugs: Iterable[str]) -> str:
    buttons = "".join(
        f'<li><button type="button" class="sc-link" data-concept="{escape(slug)}">'
        f"{escape(slug.replace('_', ' '))}</button></li>"
        for slug in slugs
    )
    return f'<ul class="sc-chips">{buttons}</ul>' if buttons else '<p class="sc-hint">None.</p>'


def _figures(detail: FeatureDetail) -> str:
    rows = [
        _row("Density", f"{detail.density:.3%}", "Share of the corpus tokens its description was written from on which it fires."),
        _row("Strongest activation", f"{detail.max_activation:.2f}", "On the same tokens, in the dictionary's own unit."),
    ]  # fmt: skip
    for scores in detail.validations:
        rows += _scores(scores)
    rows += [
        '<tr><th colspan="3" scope="rowgroup">The feature itself</th></tr>',
        _row("Seed correlation", _number(detail.seed_correlation),
             "Of its activations with those of its counterpart in a second training run; 0 when there is none."),
        _row("Seed cosine", _number(detail.seed_cosine), "Of its direction with that counterpart's."),
        _row("Sensitivity", _number(detail.sensitivity),
             "Share of fresh texts made to fit the description that fire it. Tried when the other gates were passed."),
        _row("Context-free", _number(detail.context_free),
             "The same for the description's words alone. As high as sensitivity: the words before them are idle."),
        _row("Sense purity", _number(detail.sense_purity),
             "Share of its activation on held-out sentences in the sense it votes for, mean over the concepts that use it."),
    ]  # fmt: skip
    head = "<thead><tr><th>Figure</th><th>Value</th><th>How it was obtained</th></tr></thead>"
    return f'<table class="sc-figures">{head}<tbody>{"".join(rows)}</tbody></table>'


def _scores(scores: Mapping[str, Any]) -> list[str]:
    """Rows of one split's scores."""
    split = str(scores["split"])
    title = f'<tr><th colspan="3" scope="rowgroup">{escape(_SPLITS.get(split, split))}</th></tr>'
    if scores["predicted"] == 0:
        return [title, _row("Scores", "none", "It has no description that says something of this text.")]
    low, high = scores["precision_low"], scores["precision_high"]
    interval = "" if low is None or high is None else f" ({low:.2f} to {high:.2f})"
    predicted = "" if scores["predicted"] is None else f" {scores['predicted']:,}"
    return [
        title,
        _row("Precision", f"{scores['precision']:.2f}{interval}",
             f"Of the{predicted} tokens that the description names, the share on which it fires; 95 % interval."),
        _row("Recall", f"{scores['recall']:.2f}",
             f"Of the {scores['samples']:,} tokens on which it fires, the share that the description names."),
        _row("Balanced accuracy", f"{scores['balanced_accuracy']:.2f}",
             "Mean of recall and of the share of look-alikes (the same words elsewhere, neighbours of firings) that the "
             "description rightly leaves out; 0.5 is a guess."),
    ]  # fmt: skip


def _row(name: str, value: str, how: str) -> str:
    return f'<tr><th scope="row">{name}</th><td>{value}</td><td>{how}</td></tr>'


def _number(value: float | None) -> str:
    return _NOT_MEASURED if value is None else f"{value:.2f}"
