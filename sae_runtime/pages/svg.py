"""Plots in reports: static inline SVG that follows the page's colours and loads nothing.

Labels may come from configuration or corpus text. They reach the SVG as plain text: matplotlib's mathematics is off, its
writer escapes markup, and what this module adds itself is escaped here.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from io import StringIO
from typing import Any

from markupsafe import Markup

_SIZE = (5.0, 3.5)  # inches; one column of the page, so that text is readable at 390 px and not huge at 1440 px
# The light theme's colours. In the page each becomes the custom property of the same name, so dark mode can replace it.
INK, MUTED, LINE, CONTROL, AIM, GOOD = "#1d2329", "#56616b", "#d5dbe1", "#7d8791", "#a8321a", "#2b6a2f"
SERIES = ("#0b6e99", "#b4560a", "#4f7318", "#7a4fb5")
MARKERS = ("o", "s", "^", "D", "v", "P")
_PROPERTIES = {INK: "ink", MUTED: "muted", LINE: "line", CONTROL: "control", AIM: "aim", GOOD: "good"} | {
    colour: f"series-{number}" for number, colour in enumerate(SERIES)
}

_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",  # text stays text: smaller, selectable, in the page's font
    "text.parse_math": False,  # a "$" in a label is a dollar sign
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib; the page shows its own font
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "legend.frameon": False,
    "legend.fontsize": 9,
}


@dataclass(frozen=True)
class Plot:
    """An SVG element with its title, and a caption that says what to see."""

    title: str
    caption: str
    svg: Markup


def draw(name: str, title: str, description: str, paint: Callable[[Any], None]) -> Markup:
    """Run ``paint`` on the axes of a new figure and return it as inline SVG.

    The user's matplotlib settings do not count, and the same input gives the same bytes.
    """
    import matplotlib
    from matplotlib.figure import Figure

    text = StringIO()
    with warnings.catch_warnings(), matplotlib.rc_context():
        # Measured with matplotlib's font, drawn with the reader's, which may well have the character.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        matplotlib.rcdefaults()
        settings: Any = matplotlib.rcParams  # typed by a list of some 300 literal names
        settings.update(_STYLE | {"svg.hashsalt": f"sensecheck-{name}"})
        figure = Figure(figsize=_SIZE, layout="constrained")
        paint(figure.add_subplot())
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(text, format="svg", transparent=True, metadata=nothing)
    return _inline(text.getvalue(), title, description)


def _inline(document: str, title: str, description: str) -> Markup:
    """The SVG element of a matplotlib document, made fit to stand in a page beside others.

    Matplotlib escapes ``<`` and ``>`` in text and attributes, so a regular expression finds exactly the tags.
    """
    box = re.search(r'viewBox="([\d. ]+)"', document)
    if box is None:
        raise RuntimeError("matplotlib wrote an SVG without a viewBox")
    body = document[document.index(">", document.index("<svg")) + 1 :]
    body = re.sub(r"<style.*?</style>", "", body, count=1, flags=re.DOTALL)  # it would apply to the whole page
    referenced = set(re.findall(r'(?:href="|url\()#([\w-]+)', body))

    def rewrite(match: re.Match[str]) -> str:
        tag = match.group()
        identity = re.search(r' id="([^"]*)"', tag)
        if identity and identity.group(1) not in referenced:  # "figure_1" and the like come again in every plot
            tag = tag.replace(identity.group(), "")
        return re.sub(r"#[0-9a-f]{6}\b", lambda colour: _property(colour.group()), tag)

    head = Markup('<svg class="plot" viewBox="{}" role="img" aria-label="{}"><title>{}</title>').format(
        box.group(1), description, title
    )
    return head + Markup(re.sub(r"<[^>]*>", rewrite, body))  # noqa: S704  (matplotlib's own, escaped output)


def _property(colour: str) -> str:
    return f"var(--{_PROPERTIES[colour]})" if colour in _PROPERTIES else colour
