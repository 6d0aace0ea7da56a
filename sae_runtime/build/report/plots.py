"""Plots of the build report: static inline SVG that follows the page's colours and loads nothing.

Labels may come from configuration or corpus text. They reach the SVG as plain text: matplotlib's mathematics is off, its
writer escapes markup, and what this module adds itself is escaped here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sae_runtime.pages.svg import AIM, CONTROL, GOOD, INK, MARKERS, SERIES, Plot, draw

if TYPE_CHECKING:
    from sae_runtime.build.report.page import FrontierPoint

_LABEL_CHARACTERS = 32
_BINS_PER_DECADE = 5
_SCORE_BINS = 25


def percent(share: float) -> str:
    """A share of 0..1 as text, with two decimals or, below 0.1 %, two significant digits."""
    value = 100 * share
    return f"{value:.2g}\u00a0%" if 0 < abs(value) < 0.1 else f"{value:.2f}\u00a0%"


def frontier_plot(points: Sequence[FrontierPoint], max_fvu: float, max_l0_fraction: float) -> Plot:
    """Reconstruction error against sparsity, one numbered mark per trained dictionary, with the aims as a shaded corner."""
    sites = list(dict.fromkeys(point.site for point in points))

    def paint(axes: Any) -> None:
        axes.fill_between([0, 100 * max_l0_fraction], max_fvu, color=GOOD, alpha=0.12, linewidth=0)
        axes.axhline(max_fvu, color=AIM, linestyle=(0, (4, 3)), linewidth=1)
        axes.axvline(100 * max_l0_fraction, color=AIM, linestyle=(0, (4, 3)), linewidth=1)
        handles = []
        for number, site in enumerate(sites):
            chosen = [point for point in points if point.site == site]
            handles += axes.plot(
                [100 * point.l0_fraction for point in chosen],
                [point.fvu for point in chosen],
                linestyle="none",
                marker=MARKERS[number % len(MARKERS)],
                color=SERIES[number % len(SERIES)],
            )
        for number, point in enumerate(points, 1):
            place = (100 * point.l0_fraction, point.fvu)
            if point.chosen:
                axes.plot(*place, "o", markersize=14, markerfacecolor="none", markeredgecolor=INK)
            axes.annotate(str(number), place, xytext=(6, 5), textcoords="offset points", fontsize=9)
        axes.legend(handles, [f"site {_short(site)}" for site in sites], loc="best")
        axes.set_xlim(0, 1.12 * max(100 * max_l0_fraction, *(100 * point.l0_fraction for point in points)))
        axes.set_ylim(0, 1.12 * max(max_fvu, *(point.fvu for point in points)))
        axes.set_xlabel("active latents, % of the width (L0)")
        axes.set_ylabel("variance unexplained (FVU)")

    chosen = [point for point in points if point.chosen]
    caption = (
        "Each mark is a trained dictionary; lower and further left is better. The dashed lines are the aims "
        f"(FVU {max_fvu:g}, {percent(max_l0_fraction)} active)."
    )
    for point in chosen:
        where = f"FVU {point.fvu:.4f} with {percent(point.l0_fraction)} active"
        caption += f" The ring marks the published one, {_short(point.label)}: {where}."
    title = "Reconstruction against sparsity"
    return Plot(title, caption, draw("frontier", title, caption, paint))


def loss_plot(loss: Sequence[tuple[int, float]], control: Sequence[tuple[int, float]] | None, max_fvu: float) -> Plot:
    """FVU over training steps, logarithmic, with the same run on the randomly initialised twin if there is one."""

    def paint(axes: Any) -> None:
        from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

        for curve, name, colour, dashes in _with_control(loss, control):
            marker = "o" if len(curve) == 1 else ""
            axes.plot(*zip(*curve, strict=True), color=colour, linestyle=dashes, marker=marker, label=name)
        axes.axhline(max_fvu, color=AIM, linestyle=(0, (4, 3)), linewidth=1, label=f"aim, {max_fvu:g}")
        axes.set_yscale("log", nonpositive="clip")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.legend(loc="upper right")
        axes.set_xlabel("training step")
        axes.set_ylabel("FVU (logarithmic)")

    caption = f"From {loss[0][1]:.3f} at step {loss[0][0]:,} to {loss[-1][1]:.4f} at step {loss[-1][0]:,}."
    if control:
        caption += f" On the randomly initialised twin it ends at {control[-1][1]:.4f}."
    title = "Variance unexplained during training"
    return Plot(title, caption, draw("loss", title, caption, paint))


def density_plot(density: Sequence[float], control: Sequence[float] | None) -> Plot:
    """How often latents fire: histogram of log10 of the firing density, latents that never fired in a bar of their own."""
    positive = [value for value in [*density, *(control or [])] if value > 0]
    lowest = min(-1, int(np.floor(np.log10(min(positive))))) if positive else -1
    edges = np.linspace(lowest, 0, _BINS_PER_DECADE * -lowest + 1)
    never = lowest - 0.9  # centre of the bar for density 0, left of the axis' own range

    def paint(axes: Any) -> None:
        for values, name, colour, dashes in _with_control(density, control):
            counts = np.histogram(np.log10([value for value in values if value > 0]), edges)[0]
            shares = 100 * np.array([sum(value == 0 for value in values), *counts]) / len(values)
            filled = colour != CONTROL
            look = {"color": colour, "fill": filled, "alpha": 0.75 if filled else 1.0, "linestyle": dashes}
            axes.stairs(shares[1:], edges, label=name, linewidth=1.5, **look)
            axes.stairs(shares[:1], [never - 0.2, never + 0.2], linewidth=1.5, **look)
        ticks = list(range(lowest, 1))
        axes.set_xticks([never, *ticks], ["never", *map(_power_of_ten, ticks)])
        axes.grid(visible=False, axis="x")
        axes.legend(loc="best")
        axes.set_xlabel("share of tokens on which a latent fires (logarithmic)")
        axes.set_ylabel("latents, %")
        axes.yaxis.set_major_formatter("{x:g}")

    caption = f"Of {len(density):,} latents {sum(value == 0 for value in density):,} never fired. "
    caption += f"The median latent fires on {percent(float(np.median(density)))} of the tokens"
    caption += f" (randomly initialised twin: {percent(float(np.median(control)))})." if control else "."
    title = "How often latents fire"
    return Plot(title, caption, draw("density", title, caption, paint))


def score_plot(name: str, values: Sequence[float], control: Sequence[float] | None) -> Plot:
    """Histogram of one validation score over features, with the randomly initialised twin as an outline."""
    shown = _short(name.replace("_", " "))
    everything = [*values, *(control or [])]
    edges = np.linspace(min(0.0, *everything), max(1.0, *everything), _SCORE_BINS + 1)

    def paint(axes: Any) -> None:
        for scores, arm, colour, dashes in _with_control(values, control):
            shares = 100 * np.histogram(scores, edges)[0] / len(scores)
            filled = colour != CONTROL
            look = {"color": colour, "fill": filled, "alpha": 0.75 if filled else 1.0, "linestyle": dashes}
            axes.stairs(shares, edges, label=arm, linewidth=1.5, **look)
        axes.legend(loc="best")
        axes.set_xlabel(shown)
        axes.set_ylabel("features, %")
        axes.yaxis.set_major_formatter("{x:g}")

    caption = f"{len(values):,} features, median {float(np.median(values)):.3f}"
    if control:
        caption += f"; randomly initialised twin: {len(control):,} features, median {float(np.median(control)):.3f}"
    title = f"Validation: {shown}"
    return Plot(title, caption + ".", draw(f"score-{name!a}", title, caption + ".", paint))


def _with_control(values: Sequence[Any], control: Sequence[Any] | None) -> list[tuple[Sequence[Any], str, str, str]]:
    """(values, name, colour, line style) of the model and, if measured, of its control."""
    arms: list[tuple[Sequence[Any], str, str, str]] = [(values, "trained model", SERIES[0], "-")]
    if control:
        arms.append((control, "randomly initialised twin", CONTROL, "--"))
    return arms


def _power_of_ten(exponent: int) -> str:
    return "1" if exponent == 0 else "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def _short(text: str) -> str:
    """One printable line of at most ``_LABEL_CHARACTERS``."""
    line = " ".join("".join(character if character.isprintable() else " " for character in text).split())
    return line if len(line) <= _LABEL_CHARACTERS else line[: _LABEL_CHARACTERS - 1] + "…"
