"""``sensecheck build``: run a build, say what it would do, show what builds have left."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from typer.core import TyperGroup

from sae_runtime.build.config import STAGES
from sae_runtime.models import DEFAULT_MODEL


class _RunByDefault(TyperGroup):
    """``sensecheck build NAME`` is short for ``sensecheck build run NAME``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or (args[0] not in self.commands and args[0] not in ctx.help_option_names):
            args = ["run", *args]
        return super().parse_args(ctx, args)


build_app = typer.Typer(
    cls=_RunByDefault,
    help="Build a dictionary and a catalog offline, from a model and text. `build NAME` is short for `build run NAME`.",
)


@build_app.command("run")
def run(
    config: Annotated[str, typer.Argument(help="Built-in model name, or a YAML configuration.")] = DEFAULT_MODEL,
    corpus: Annotated[Path | None, typer.Option(help="Folder of training text; overrides the configuration.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for SAE, catalog, card and report; default: the shipped ones' place.")
    ] = None,
    start: Annotated[
        str | None, typer.Option("--from", help=f"Do this stage and those after it anew. Stages: {', '.join(STAGES)}.")
    ] = None,
    to: Annotated[str, typer.Option("--to", help="Last stage.")] = "publish",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be done, and the disk it needs.")] = (
        False
    ),
    sae: Annotated[
        str | None,
        typer.Option(
            help="Use this SAE instead of training one: a folder in SAELens' format, or REPO/FOLDER of a hub."
        ),
    ] = None,
    writer_url: Annotated[
        str | None, typer.Option(help="OpenAI-compatible server whose model writes the features' sentences.")
    ] = None,
    workers: Annotated[
        str,
        typer.Option(
            help="Who does the long steps: local (this process), ray:N (N processes of this machine), or a Ray cluster: "
            "ray:auto, ray:HOST:PORT, ray://HOST:PORT. The results are the same."
        ),
    ] = "local",
) -> None:
    """Build. Every stage goes on where it was interrupted, and is skipped when its inputs are the same.

    Example: sensecheck build smollm2-135m-instruct --corpus texts --to train
    """
    from sae_runtime.build.config import load_config
    from sae_runtime.build.pipeline import run_build
    from sae_runtime.build.workers import open_workers
    from ui.cli.show import show_card

    loaded = load_config(config, corpus_root=corpus, sae=sae)
    if dry_run:
        _show_plan(loaded)
        return
    with open_workers(workers) as crew:
        card = run_build(loaded, out=out, start=start, until=to, writer=_writer(writer_url), workers=crew)
    if card is not None:
        show_card(card, as_json=False)


@build_app.command("concepts")
def concepts(
    model: Annotated[str, typer.Argument(help="Built-in name, folder or hub id.")] = DEFAULT_MODEL,
    packs: Annotated[
        str | None,
        typer.Option(help="Concept packs, names or folders with commas between; default: those of the build."),
    ] = None,
    artefacts: Annotated[
        Path | None, typer.Option(help="Folder of SAE and catalog; default: the shipped ones.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the result; default: in the place of what was there.")
    ] = (None),
) -> None:
    """Fit the concepts of a finished build anew, when packs have changed: no corpus, no training, minutes.

    Features and dictionary stay. Example: sensecheck build concepts --packs homographs,my-packs/office --out mine
    """
    from sae_runtime.build.refit import refit
    from ui.cli.show import show_card

    card = refit(model, artefacts=artefacts, packs=_packs(packs) if packs else None, out=out)
    show_card(card, as_json=False)


@build_app.command("status")
def status() -> None:
    """Show what builds have left in the cache: finished and interrupted stages, their size and age."""
    from sae_runtime.build.status import free_bytes, kept
    from sae_runtime.paths import builds_dir

    table = Table("model", "step", "key", "state", "size", "last change (UTC)", title=f"Builds in {builds_dir()}")
    for step in kept():
        changed = f"{step.changed:%Y-%m-%d %H:%M}"
        table.add_row(step.model, step.name, step.key, step.state, _size(step.bytes), changed)
    Console().print(table)
    print(f"{_size(free_bytes())} free. Folders are never removed by a build; delete those you no longer need.")


def _packs(names: str) -> list[str]:
    """Packs of ours by name, others by their folder as it is seen from here."""
    from sae_runtime.catalog.packs import PACKS

    given = [name.strip() for name in names.split(",")]
    return [name if (PACKS / name).is_dir() else str(Path(name).resolve()) for name in given]


def _show_plan(config: Any) -> None:
    from sae_runtime.build.plan import BuildPlan
    from sae_runtime.build.status import free_bytes, needed_bytes, planned

    plan = BuildPlan.of(config)
    table = Table("stage", "step", "key", "state", "disk", title=f"Build of {config.model}")
    for step in planned(plan):
        table.add_row(step.stage, step.name, step.key, step.state, "" if step.bytes is None else _size(step.bytes))
    Console().print(table)
    print(f"About {_size(needed_bytes(plan))} to be written, {_size(free_bytes())} free.")


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def _writer(url: str | None) -> Any:
    """A chat model behind ``url`` as a function from prompt to answer."""
    if url is None:
        return None
    from langchain_openai import ChatOpenAI
    from pydantic import SecretStr

    from sae_runtime.errors import ServerError
    from sae_runtime.serving import served_model

    name = served_model(url)
    if name is None:
        raise ServerError(
            f"No OpenAI-compatible server answers at {url}.", "Start one, for example `sensecheck serve`."
        )
    model = ChatOpenAI(base_url=f"{url.rstrip('/')}/v1", api_key=SecretStr("none"), model=name, temperature=0)
    return lambda prompt: str(model.invoke(prompt, max_tokens=60).content)
