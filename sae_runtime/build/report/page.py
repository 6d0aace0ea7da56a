"""The report of one build: ``report.json`` for programs and ``report.html``, one file without scripts, for readers.

Nearly every string in it comes from corpus text or from a configuration. The template escapes all of them, and the page
forbids scripts and every outside resource (Content-Security-Policy) should that ever fail.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Self

from markupsafe import Markup
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from sae_runtime.build.report.plots import density_plot, frontier_plot, loss_plot, percent, score_plot
from sae_runtime.build.stages import write_text
from sae_runtime.errors import InputError
from sae_runtime.pages import templates
from sae_runtime.pages.svg import Plot
from sae_runtime.paths import REPORT_JSON_FILE, REPORT_PAGE_FILE

_TEMPLATE = "report.html.jinja"

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(ge=0)]
LossPoint = tuple[Count, Positive]  # (step, FVU)


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True)


class FrontierPoint(_Part):
    """One trained dictionary; ``chosen`` marks the published one."""

    label: str
    site: str
    width: Count
    l0_fraction: Share
    fvu: Positive
    tokens: Count
    chosen: bool


class Gate(_Part):
    """A test of a feature, with the shares of live latents that pass it in the model and in its control."""

    name: str
    rule: str
    share: Share
    control_share: Share | None = None


class Validation(_Part):
    """Feature validation: gates, per-feature scores by name, and shares.

    ``control_scores`` may hold fewer names than ``scores``, never others. ``live_share`` and ``catalogued_share`` are
    the shares of live latents and of catalogued features that pass every gate, ``kept_precision_share`` that of
    catalogued features whose precision holds on unseen text.
    """

    gates: list[Gate]
    scores: dict[str, list[float]]
    control_scores: dict[str, list[float]] = {}
    catalogued_share: Share
    live_share: Share
    kept_precision_share: Share

    @model_validator(mode="after")
    def _controls_have_a_counterpart(self) -> Self:
        _refuse_unmatched("control_scores", self.control_scores, "scores", self.scores)
        return self


class Context(_Part):
    """A piece of text in which the feature fires on the characters ``start`` to ``end``."""

    text: str
    start: Count
    end: Count
    activation: float

    @model_validator(mode="after")
    def _span_is_inside(self) -> Self:
        if not self.start <= self.end <= len(self.text):
            raise ValueError(f"span {self.start}..{self.end} is not inside a text of {len(self.text)} characters")
        return self


class ExampleFeature(_Part):
    """A feature as shown in the report. ``precision_low`` and ``precision_high`` are its confidence interval."""

    index: Count
    description: str
    sentence: str
    density: Share
    precision: Share
    precision_low: Share
    precision_high: Share
    recall: Share
    balanced_accuracy: Share
    promoted: list[str]
    contexts: list[Context]


class Examples(_Part):
    """Example features from the top, the middle and the bottom of the ranking."""

    best: list[ExampleFeature]
    median: list[ExampleFeature]
    worst: list[ExampleFeature]


class DataSource(_Part):
    """A source of training text."""

    name: str
    licence: str
    tokens: Count


class Report(_Part):
    """Everything a report shows. Optional parts are those that a build may not have measured.

    ``figures`` is a flat table; ``control_figures`` holds some of the same names, measured on the randomly initialised
    twin. ``loss`` is a list of (step, FVU); ``density`` has the firing density of every latent.
    """

    model: str
    title: str
    created: str
    command: str
    figures: dict[str, float | int | str]
    control_figures: dict[str, float] = {}
    loss: list[LossPoint] | None = None
    control_loss: list[LossPoint] | None = None
    frontier: list[FrontierPoint] | None = None
    density: list[Share] | None = None
    control_density: list[Share] | None = None
    validation: Validation | None = None
    readings: dict[str, float] | None = None
    calibration: dict[str, float | int] | None = None
    examples: Examples | None = None
    data: list[DataSource] | None = None

    @field_validator("created")
    @classmethod
    def _is_iso_date(cls, value: str) -> str:
        datetime.fromisoformat(value)
        return value

    @model_validator(mode="after")
    def _figures_fit(self) -> Self:
        _refuse_unmatched("control_figures", self.control_figures, "figures", self.figures)
        for name in (aim.name for aim in AIMS):
            if isinstance(self.figures.get(name), str):
                raise ValueError(f"figures: {name} must be a number")
        return self


@dataclass(frozen=True)
class Aim:
    """What a key figure should reach; ``name`` is a name in ``figures`` or in ``validation``."""

    name: str
    title: str
    limit: float
    at_most: bool
    show: Callable[[float, int], str]

    def met(self, value: float) -> bool:
        """Whether ``value`` reaches the aim."""
        return value <= self.limit if self.at_most else value >= self.limit

    def text(self, value: float) -> str:
        """``value`` with as many decimals as it takes not to look like the other side of the limit."""
        for decimals in range(2, 9):
            text = self.show(value, decimals)
            if text != self.show(self.limit, decimals) or value == self.limit:
                break
        return text


def _as_share(value: float, decimals: int) -> str:
    return f"{100 * value:.{decimals}f}\u00a0%"


def _as_number(value: float, decimals: int) -> str:
    return f"{value:.{decimals + 2}f}"


AIMS = (
    Aim("fvu", "Variance unexplained (FVU)", 0.05, True, _as_number),
    Aim("l0_fraction", "Active latents per token (L0)", 0.01, True, _as_share),
    Aim("ce_recovered", "Cross-entropy recovered", 0.98, False, _as_number),
    Aim("dead_fraction", "Dead latents", 0.01, True, _as_share),
    Aim("kept_precision_share", "Catalogued descriptions that keep their precision", 0.95, False, _as_share),
)
_MAX_FVU, _MAX_L0_FRACTION = AIMS[0].limit, AIMS[1].limit

_MEANINGS = {
    "fvu": "fraction of variance unexplained, all dimensions pooled",
    "fvu_per_dimension": "the same, computed per dimension and averaged",
    "l0_mean": "active latents per token, mean",
    "l0_fraction": "active latents as a share of the width",
    "ce_recovered": "share of the cross-entropy between mean ablation and the untouched model that is recovered",
    "ce_delta": "cross-entropy added by the reconstruction, nats per token",
    "ce_clean": "cross-entropy of the untouched model, nats per token",
    "ce_tokens": "tokens on which cross-entropy was measured",
    "dead_fraction": "latents that fire on no token of the window",
    "dead_window_tokens": "tokens in that window",
    "tokens_trained": "tokens seen in training, repetitions counted",
    "tokens_distinct": "distinct tokens of training text",
}
_SCORE_ORDER = ("precision", "recall", "balanced_accuracy")


def write_report(report: dict[str, Any], folder: Path) -> None:
    """Write ``report.json`` and ``report.html`` to ``folder``, which is made if need be.

    Equal dictionaries give equal bytes. Nothing is written when the report is wrong.

    Args:
        report: the fields of :class:`Report`.
        folder: where the two files go; each is written under a temporary name and renamed.

    Raises:
        InputError: a field is missing, unknown, of the wrong type or not a finite number.
    """
    try:
        checked = Report.model_validate(report)
    except ValidationError as error:
        raise InputError(
            f"The build report for {folder} is wrong: {error}",
            "Leave out what was not measured, and give numbers for what was.",
        ) from error
    page = render_page(checked)
    fields = checked.model_dump(mode="json", exclude_none=True)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / REPORT_JSON_FILE, json.dumps(fields, sort_keys=True, indent=1, allow_nan=False) + "\n")
    write_text(folder / REPORT_PAGE_FILE, page)


def render_page(report: Report) -> str:
    """The report as one HTML document that loads nothing and runs nothing."""
    environment = templates(Path(__file__).parent, finalize=_visible)
    environment.filters |= {"percent": percent, "number": _number, "token": _token, "marked": _marked}
    plots, missing = _plots(report)
    return environment.get_template(_TEMPLATE).render(
        report=report,
        tiles=_tiles(report),
        figures=_figure_rows(report),
        plots=plots,
        missing=missing,
    )


def _refuse_unmatched(name: str, control: dict[str, Any], counterpart: str, values: dict[str, Any]) -> None:
    unmatched = sorted(set(control) - set(values))
    if unmatched:
        raise ValueError(f"{name} has {', '.join(unmatched)}, which {counterpart} has not")


def _tiles(report: Report) -> list[dict[str, str]]:
    """The key figures against their aims, as texts."""
    tiles = []
    for aim in AIMS:
        if aim.name in Validation.model_fields:
            value = getattr(report.validation, aim.name, None)
        else:
            value = report.figures.get(aim.name)
        control = report.control_figures.get(aim.name)
        tiles.append({
            "title": aim.title,
            "value": "–" if value is None else aim.text(value),
            "aim": f"aim {'at most' if aim.at_most else 'at least'} {aim.show(aim.limit, 0)}",
            "status": "not measured" if value is None else "met" if aim.met(value) else "not met",
            "control": "" if control is None else f"randomly initialised twin: {aim.text(control)}",
        })  # fmt: skip
    return tiles


def _figure_rows(report: Report) -> list[dict[str, Any]]:
    """All figures, the known ones first."""
    names = _ordered(report.figures, tuple(_MEANINGS))
    return [
        {
            "name": name,
            "meaning": _MEANINGS.get(name, ""),
            "value": _number(report.figures[name]),
            "control": _number(report.control_figures[name]) if name in report.control_figures else "",
        }
        for name in names
    ]


def _plots(report: Report) -> tuple[list[Plot], list[str]]:
    """The plots that can be drawn, and the names of what the build did not measure."""
    plots, missing = [], []
    if not report.control_figures:
        missing.append("the dictionary's figures on a randomly initialised twin")
    if report.frontier:
        plots.append(frontier_plot(report.frontier, _MAX_FVU, _MAX_L0_FRACTION))
    else:
        missing.append("other dictionaries to compare with (frontier)")
    if report.loss:
        plots.append(loss_plot(report.loss, report.control_loss, _MAX_FVU))
    else:
        missing.append("the loss during training")
    if report.density:
        plots.append(density_plot(report.density, report.control_density))
    else:
        missing.append("how often each latent fires")
    scores = report.validation.scores if report.validation else {}
    controls = report.validation.control_scores if report.validation else {}
    measured = [name for name in _ordered(scores, _SCORE_ORDER) if scores[name]]
    plots += [score_plot(name, scores[name], controls.get(name)) for name in measured]
    if not measured:
        missing.append("validation scores of features")
    return plots, missing


def _ordered(names: dict[str, Any], first: tuple[str, ...]) -> list[str]:
    """Those of ``first`` that occur in ``names``, then the others alphabetically."""
    return [name for name in first if name in names] + sorted(set(names) - set(first))


def _number(value: float | int | str) -> str:
    if isinstance(value, float):
        return f"{value:,.1f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else value


def _token(text: str) -> str:
    """A token with its line ends and tabs visible."""
    return text.replace("\r", "␍").replace("\n", "↵").replace("\t", "⇥") or "(empty)"


def _marked(text: str) -> str:
    """A marked piece of text; a line end alone would leave nothing to see."""
    return text.replace("\n", "↵\n")


def _visible(value: Any) -> Any:
    """Replace control characters, which HTML does not allow, by their pictures. Jinja escapes the result."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return value.translate(_CONTROL_PICTURES)
    return value


# C0 except tab and line feed, DEL and C1; bidirectional overrides, which could reorder what stands beside them; halves of
# surrogate pairs, which UTF-8 cannot hold.
_CONTROL_PICTURES = {code: 0x2400 + code for code in range(0x20) if code not in (0x09, 0x0A)} | dict.fromkeys(
    [*range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A), *range(0xD800, 0xE000)], 0xFFFD
)
