"""The evidence of a folder of results: tables in Markdown, JSON, and one HTML page with plots that loads nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sae_runtime.build.stages import write_text
from sae_runtime.errors import InputError
from sae_runtime.evaluation.failures import FAILURES
from sae_runtime.evaluation.figures import (
    across_models,
    answers,
    comparisons,
    failures,
    flags,
    foreseen,
    mistakes,
    readings,
    sources,
    trials,
)
from sae_runtime.evaluation.flags import FLAGS
from sae_runtime.evaluation.run import RESULTS
from sae_runtime.evaluation.sources import SOURCES
from sae_runtime.pages import templates
from sae_runtime.pages.svg import CONTROL, SERIES, Plot, draw

PAGE = "report.html"
_TITLES = {
    "flags": "Flags on prompts with planted senses",
    "sources": "Sources of the intended sense, and the flags that come of each",
    "failures": "Does a flag predict that the model gets the word wrong, and does the note mend it?",
    "readings": "What can be read: labels of unseen items, without asking the model",
    "answers": "What notes do to answers",
    "comparisons": "Flagged against the other arms, item by item",
    "models": "One model with notes against another without, on the same items",
    "wordings": "Wordings of notes, tried on the dev part with the right label",
    "mistakes": "Kinds of mistake on problems that chose nothing else, and the features that go with them",
    "trials": "Notes of failure-derived concepts, tried on problems that fitted nothing",
    "foreseen": "Can a wrong answer be foreseen from what was read?",
    "thresholds": "From which probability a reading is flagged (chosen on the dev part; 1.01: never)",
}


def load_results(folder: Path) -> list[dict[str, Any]]:
    """All results below ``folder``.

    Raises:
        InputError: there are none, or one is damaged.
    """
    paths = sorted([path for name in (RESULTS, FLAGS, FAILURES, SOURCES) for path in folder.rglob(name)])
    if not paths:
        raise InputError(f"There are no results below {folder}.", "Make some with `sensecheck eval run`.")
    found = []
    for path in paths:
        try:
            found.append(json.loads(path.read_text("utf-8")))
        except ValueError as error:
            raise InputError(f"{path} is damaged: {error}.", "Delete it and run the task again.") from error
    return found


def summary(results: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The report's tables, by name."""
    sourced = [result for result in results if "pairs" in result]
    planted = [result for result in results if "set" in result and "pairs" not in result]
    mistaken = [result for result in results if "foreseen" in result]
    results = [result for result in results if "set" not in result and "foreseen" not in result]
    asked = [result for result in results if "arms" in result]
    about = [{"task": result["task"], "model": result["model"]} for result in asked]
    return {
        "flags": [row for result in planted for row in flags(result)],
        "sources": [row for result in sourced for row in sources(result)],
        "failures": [row for result in planted for row in failures(result)],
        "readings": [row for result in results for row in readings(result)],
        "answers": [row for result in asked for row in answers(result)],
        "comparisons": [row for result in asked for row in comparisons(result)],
        "models": across_models([*asked, *(result for result in planted if "arms" in result)]),
        "wordings": [
            {**own, "wording": name, "chosen": name == result["wording"], **row}
            for own, result in zip(about, asked, strict=True)
            for name, row in result["wordings"].items()
        ],
        "mistakes": [row for result in mistaken for row in mistakes(result)],
        "trials": [row for result in mistaken for row in trials(result)],
        "foreseen": [row for result in mistaken for row in foreseen(result)],
        "thresholds": [{**own, **result["thresholds"]} for own, result in zip(about, asked, strict=True)],
    }


def markdown(figures: dict[str, list[dict[str, Any]]]) -> str:
    """The tables as Markdown."""
    parts = []
    for name, rows in figures.items():
        if rows:
            head = [column.replace("_", " ") for column in rows[0]]
            lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
            lines += ["| " + " | ".join(_cell(value) for value in row.values()) + " |" for row in rows]
            parts.append(f"## {_TITLES[name]}\n\n" + "\n".join(lines))
    return "\n\n".join(parts)


def write_page(figures: dict[str, list[dict[str, Any]]], folder: Path) -> Path:
    """Write ``report.html`` into ``folder``."""
    environment = templates(Path(__file__).parent)
    environment.filters["cell"] = _cell
    tables = {name: rows for name, rows in figures.items() if rows}
    page = environment.get_template("report.html.jinja").render(titles=_TITLES, tables=tables, plots=_plots(figures))
    path = folder / PAGE
    write_text(path, page)
    return path


def _plots(figures: dict[str, list[dict[str, Any]]]) -> list[Plot]:
    plots = []
    for task, model in dict.fromkeys((row["task"], row["model"]) for row in figures["answers"]):
        rows = [row for row in figures["answers"] if (row["task"], row["model"]) == (task, model)]
        title = f"{task}, {model}: change against no note"
        caption = "Paired difference in right answers to the same questions without a note, with its 95 % interval."
        rows = [row for row in rows if row["arm"] != "plain"]
        plots.append(Plot(title, caption, draw(f"{task}-{model}", title, caption, _lifts(rows))))
    return plots


def _lifts(rows: list[dict[str, Any]]) -> Callable[[Any], None]:
    def paint(axes: Any) -> None:
        for place, row in enumerate(reversed(rows)):
            low, high = row["interval"]
            colour = SERIES[0] if row["arm"] == "flagged" else CONTROL
            axes.plot([100 * low, 100 * high], [place, place], color=colour, linewidth=2)
            axes.plot([100 * row["lift"]], [place], "o", color=colour)
        axes.axvline(0, color=CONTROL, linewidth=1)
        axes.set_yticks(range(len(rows)), [row["arm"] for row in reversed(rows)])
        axes.set_xlabel("points of accuracy")

    return paint


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else ""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        return " to ".join(_cell(part) for part in value)
    return str(value)
