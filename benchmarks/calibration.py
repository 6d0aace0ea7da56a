"""What the misread rule's calibration rests on: ``python -m benchmarks.calibration MODEL``.

All figures are those of the prompts that choose the thresholds; what the rule does on others is the business of ``sensecheck eval planted``.
Each row has thresholds chosen with so many plain prompts, with or without asking what the words before the mention said
(:func:`sae_runtime.detector.context.told_senses`), and what these thresholds do on all the prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

import typer

from benchmarks.table import show
from sae_runtime.build.calibrate import Both, Bounds, Table, choose_bounds
from sae_runtime.build.concepts import read_calibration
from sae_runtime.build.refit import Refit
from sae_runtime.build.workers import LocalWorkers
from sae_runtime.evaluation.prompts import planted_prompts
from sae_runtime.models import DEFAULT_MODEL


def main(model: Annotated[str, typer.Argument(help="Built-in name, folder or hub id.")] = DEFAULT_MODEL) -> None:
    """Choose thresholds in several ways and print what they do."""
    job = Refit.of(model, None, None)
    judged = read_calibration(str(job.artefacts.model.path), job.artefacts.folder, job.fit(LocalWorkers()))
    untold = [replace(one, told=dict.fromkeys(one.told, 0.0)) for one in judged]
    later = {prompt.id for prompt in planted_prompts("plain")}
    former, _ = choose_bounds([one for one in untold if one.prompt.id not in later])
    rows = [
        _row("fewer plain prompts", former, untold, later),
        _row("the same thresholds, and told", former, judged, later),
        _row("all prompts", choose_bounds(untold)[0], untold, later),
        _row("all prompts, and told (shipped)", choose_bounds(judged)[0], judged, later),
    ]
    show(rows, as_json=False)


def _row(name: str, bounds: Bounds, judged: Sequence[Both], later: set[str]) -> dict[str, object]:
    old, new = ([one for one in judged if (one.prompt.id in later) == added] for added in (False, True))
    figures = Table(judged).figures(bounds)
    return {
        "thresholds": name,
        **bounds._asdict(),
        "recall": figures["recall"],
        "precision": figures["precision"],
        "plain_flagged": figures["false_flag_rate_plain"],
        "of_the_former": Table(old).figures(bounds)["false_flag_rate_plain"],
        "of_the_later": Table(new).figures(bounds)["false_flag_rate_plain"],
    }


if __name__ == "__main__":
    typer.run(main)
