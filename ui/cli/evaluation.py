"""``sensecheck eval``: does reading prompts help? Tasks, arms, reports; and the prompts with planted senses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from sae_runtime.evaluation.arms import ARMS
from sae_runtime.models import DEFAULT_MODEL
from ui.cli.options import Artefacts, AsJson, Dictionary, Model, Out, Url

eval_app = typer.Typer(help="Measure readings, flags and notes.", no_args_is_help=True)


@eval_app.command("run")
def run(
    task: Annotated[
        str,
        typer.Argument(help="mohx, vua, lcc, flute, coarsewsd, wic, svamp, svamp-steps, mawps, asdiv, gsm8k, table."),
    ],
    data: Annotated[Path, typer.Option(help="Folder of the data sets, or the CSV file of the task `table`.")],
    out: Out,
    model: Model = DEFAULT_MODEL,
    arms: Annotated[str, typer.Option(help=f"Comma-separated, or all: {', '.join(ARMS)}.")] = "all",
    limit: Annotated[
        int | None, typer.Option(min=20, help="At most so many test items; a quarter for choices.")
    ] = None,
    fit: Annotated[int | None, typer.Option(min=50, help="At most so many items to fit readouts on.")] = None,
    answers: Annotated[bool, typer.Option(help="Ask the model; --no-answers only measures what is read.")] = True,
    sae: Dictionary = None,
    url: Url = None,
    artefacts: Artefacts = None,
) -> None:
    """Run one task: read every item, fit readouts, choose on the dev part, ask about the test part, keep the results.

    Example: sensecheck eval run mohx --data ../shared/data --out results --limit 200
    """
    from ui.cli.evaluation_run import run_task

    chosen = list(ARMS) if arms == "all" else [name.strip() for name in arms.split(",")]
    limits: dict[str, int] = {}
    if limit is not None:
        limits |= {"test": limit, "dev": max(20, limit // 4)}
    if fit is not None:
        limits["fit"] = fit
    run_task(task, model, data, out, chosen, limits, sae=sae, url=url, artefacts=artefacts, ask=answers)


@eval_app.command("planted")
def planted(
    out: Out,
    model: Model = DEFAULT_MODEL,
    prompts: Annotated[str, typer.Option("--set", help="test, glossary, dev, calibration or examples.")] = "test",
    answers: Annotated[bool, typer.Option(help="Ask the model; --no-answers only reads and flags.")] = True,
    url: Url = None,
    artefacts: Artefacts = None,
) -> None:
    """Flag prompts with planted senses, ask the model what the words mean, with notes and without.

    Needs no data: the prompts come with the program. Example: sensecheck eval planted --out results
    """
    from ui.cli.evaluation_run import run_planted

    run_planted(prompts, model, out, url=url, artefacts=artefacts, ask=answers)


@eval_app.command("sources")
def sources(
    out: Out,
    model: Model = DEFAULT_MODEL,
    prompts: Annotated[str, typer.Option("--set", help="test or examples.")] = "test",
    sae: Dictionary = None,
    artefacts: Artefacts = None,
) -> None:
    """Compare sources of the intended sense: later words, declared domain, and a reading of the whole prompt.

    Needs neither data nor a server. Example: sensecheck eval sources --out results
    """
    from ui.cli.evaluation_run import run_sources

    run_sources(prompts, model, out, sae=sae, artefacts=artefacts)


@eval_app.command("notes")
def notes(
    out: Out,
    model: Model = DEFAULT_MODEL,
    write: Annotated[
        bool, typer.Option(help="Store effects and winning wordings in the catalog and on the card.")
    ] = False,
    url: Url = None,
    artefacts: Artefacts = None,
    as_json: AsJson = False,
) -> None:
    """Try every note of the catalog on sentences of its sense: wordings compete, the winner's effect is measured.

    The last step of a build: sensecheck eval notes -m MODEL --out results --write
    """
    from ui.cli.evaluation_run import run_notes

    run_notes(model, out, url=url, artefacts=artefacts, write=write, as_json=as_json)


@eval_app.command("failures")
def failures(
    task: Annotated[str, typer.Argument(help="svamp, mawps, asdiv or gsm8k: its fit part is asked.")],
    data: Annotated[Path, typer.Option(help="Folder of the data sets.")],
    out: Out,
    model: Model = DEFAULT_MODEL,
    problems: Annotated[int, typer.Option(min=100, help="Calibration problems that the model answers.")] = 500,
    sae: Dictionary = None,
    url: Url = None,
    artefacts: Artefacts = None,
) -> None:
    """Derive concepts from failures: kinds of mistakes, the features that go before them, and whether they can be foreseen."""
    from ui.cli.evaluation_run import run_failures

    run_failures(task, model, data, out, problems, sae=sae, url=url, artefacts=artefacts)


@eval_app.command("report")
def report(
    folder: Annotated[Path, typer.Argument(help="Folder of results, searched through.")],
    as_json: AsJson = False,
) -> None:
    """Print the figures of all results below a folder and write them as one HTML page with plots (report.html)."""
    from sae_runtime.evaluation.report import load_results, markdown, summary, write_page

    results = load_results(folder)
    figures = summary(results)
    page = write_page(figures, folder)
    print(json.dumps(figures, indent=1) if as_json else markdown(figures))
    typer.echo(f"{page} holds the same with plots.", err=True)


@eval_app.command("examples")
def examples(
    model: Model = DEFAULT_MODEL,
    artefacts: Artefacts = None,
    out: Annotated[Path | None, typer.Option(help="Write the table as Markdown to this file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Read the fifty example prompts and print every flag with precision and recall."""
    from sae_runtime.build.stages import write_text
    from sae_runtime.detector import Inspector
    from sae_runtime.evaluation.examples import read_examples

    table = read_examples(Inspector.from_model(model, artefacts=artefacts))
    if out is not None:
        write_text(out, table.markdown())
    print(json.dumps(table.figures(), indent=1) if as_json else table.markdown())
