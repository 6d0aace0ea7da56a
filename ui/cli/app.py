"""The ``sensecheck`` command: one function per sub-command, errors as text with a remedy and exit code 2."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from sae_runtime.errors import SensecheckError
from sae_runtime.models import DEFAULT_MODEL
from sae_runtime.models.manifest import builtin_manifests
from ui.cli.build import build_app
from ui.cli.evaluation import eval_app
from ui.cli.options import Artefacts, AsJson, Catalog, LogFormatOption, Model, Url
from ui.cli.terminal import visible

EXIT_ERROR = 2
_WHERE = "A SQLite file, or a URL such as postgresql://user@host/database."
app = typer.Typer(
    name="sensecheck",
    help="Reads how a language model understood a prompt, flags what it misread, and notes it before the model answers.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
model_app = typer.Typer(help="Models that come with Sensecheck.", no_args_is_help=True)
db_app = typer.Typer(help="The catalog's database schema.", no_args_is_help=True)
app.add_typer(model_app, name="model")
app.add_typer(db_app, name="db")
app.add_typer(build_app, name="build")
app.add_typer(eval_app, name="eval")
stderr = Console(stderr=True)

Engine = Literal["vllm", "transformers", "none"]


def main() -> None:
    """Entry point: typed errors become one readable message and exit code 2."""
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        app()
    except SensecheckError as error:
        stderr.print(f"[bold red]Error:[/] {_plain(error.message)}", highlight=False, soft_wrap=True)
        if error.remedy:
            stderr.print(f"[bold]What to do:[/] {_plain(error.remedy)}", highlight=False, soft_wrap=True)
        sys.exit(EXIT_ERROR)
    except KeyboardInterrupt:
        sys.exit(130)


def _plain(text: str) -> str:
    """Text that rich must not read as markup, and that may come from others."""
    return visible(text).replace("[", "\\[")


@app.command()
def ask(
    prompt: Annotated[str, typer.Argument(help="What to ask, in quotes. '-' reads standard input.")],
    model: Model = DEFAULT_MODEL,
    domain: Annotated[
        str | None, typer.Option(help="Declared domain, such as finance: its senses count as intended.")
    ] = None,
    glossary: Annotated[
        Path | None, typer.Option(help="YAML file with your own terms, see docs/how-to/glossary.md.")
    ] = None,
    answer: Annotated[bool, typer.Option(help="Also let the model answer; --no-answer only reads.")] = True,
    url: Url = None,
    placement: Annotated[str, typer.Option(help="Where notes go: after, inline or system.")] = "after",
    max_tokens: Annotated[int, typer.Option(min=1, help="Length limit of an answer.")] = 256,
    artefacts: Artefacts = None,
    catalog: Catalog = None,
    as_json: AsJson = False,
) -> None:
    """Show how the model reads a prompt, what is flagged, the note, and the answer with and without it.

    Example: sensecheck ask "The bass was too heavy to carry up the stairs. What should I do?"
    """
    from ui.cli.ask import AskOptions, run_ask
    from ui.cli.catalog import named_catalog

    text = sys.stdin.read() if prompt == "-" else prompt
    place = named_catalog(catalog)
    run_ask(text, AskOptions(model, domain, glossary, answer, url, placement, max_tokens, artefacts, place, as_json))


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def serve(
    context: typer.Context,
    model: Model = DEFAULT_MODEL,
    host: Annotated[str, typer.Option(help="Address to listen on; loopback unless you say otherwise.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 picks a free one.")] = 8000,
    api_key: Annotated[str | None, typer.Option(envvar="VLLM_API_KEY", help="Key that requests must carry.")] = None,
    compiled: Annotated[bool, typer.Option(help="Compile the model: faster answers, slower first start.")] = False,
    engine: Annotated[
        Engine, typer.Option(help="Where prompts are read: in vLLM's worker, by transformers beside it, or nowhere.")
    ] = "vllm",
    residual: Annotated[
        bool, typer.Option("--residual", help="Also hand out residual streams, under /v1/sae/residual.")
    ] = False,
    dtype: Annotated[str, typer.Option(help="bfloat16 or float32; auto takes what the hardware computes in.")] = "auto",
    log_format: LogFormatOption = "text",
    log_prompts: Annotated[
        Path | None,
        typer.Option(help="Log the prompts that are read to this file, redacted. By default none is stored."),
    ] = None,
    log_prompts_mb: Annotated[float, typer.Option(min=0.001, help="Size of a file of logged prompts.")] = 10.0,
    log_prompts_files: Annotated[int, typer.Option(min=1, help="Number of those files.")] = 10,
    log_prompts_days: Annotated[float, typer.Option(min=0.01, help="Days after which they are deleted.")] = 30.0,
    artefacts: Artefacts = None,
    catalog: Catalog = None,
) -> None:
    """Serve the model with vLLM's OpenAI-compatible API, read prompts in its worker, annotate chats that ask for it.

    Further options go to vLLM, for example --max-model-len 8192 or --data-parallel-size 2.
    """
    from sae_runtime.serving import ServerOptions
    from sae_runtime.serving.prompt_files import PromptLogOptions
    from ui.cli.catalog import named_catalog
    from ui.cli.serve import run_serve

    prompt_log = None
    if log_prompts is not None:
        size = int(log_prompts_mb * 1e6)
        prompt_log = PromptLogOptions(str(log_prompts.absolute()), size, log_prompts_files, log_prompts_days)
    options = ServerOptions(
        host,
        port,
        api_key,
        compiled=compiled,
        engine=engine,
        residual=residual,
        dtype=dtype,
        artefacts=artefacts,
        catalog=named_catalog(catalog),
        log_format=log_format,
        prompt_log=prompt_log,
        extra=tuple(context.args),
    )
    run_serve(model, options)


@app.command()
def chat(
    model: Model = DEFAULT_MODEL,
    port: Annotated[int, typer.Option(help="Port of the chat page.")] = 7860,
    host: Annotated[
        str, typer.Option(help="Address to listen on; other than loopback only with --auth.")
    ] = "127.0.0.1",
    auth: Annotated[Path | None, typer.Option(help="File of accounts, one user:password per line.")] = None,
    root_path: Annotated[str | None, typer.Option(help="Path under which a reverse proxy shows the page.")] = None,
    log_format: LogFormatOption = "text",
    url: Url = None,
    artefacts: Artefacts = None,
    catalog: Catalog = None,
) -> None:
    """Open the chat in the browser: the conversation, and beside it how the model read your words."""
    from ui.cli.catalog import named_catalog
    from ui.cli.serve import run_chat

    run_chat(
        model,
        url,
        artefacts,
        named_catalog(catalog),
        port=port,
        host=host,
        auth=auth,
        root_path=root_path,
        log_format=log_format,
    )


@app.command()
def card(model: Model = DEFAULT_MODEL, artefacts: Artefacts = None, as_json: AsJson = False) -> None:
    """Show what the SAE and the catalog of a model are, with measured figures."""
    from ui.cli.show import load_card, show_card

    show_card(load_card(model, artefacts), as_json=as_json)


@model_app.command("fetch")
def model_fetch(name: Annotated[str, typer.Argument(help="Built-in model name.")] = DEFAULT_MODEL) -> None:
    """Download and convert a built-in model; does nothing when it is there."""
    from sae_runtime.models import resolve_model

    print(resolve_model(name).path)


@model_app.command("list")
def model_list() -> None:
    """List the built-in models, the default one first."""
    for manifest in builtin_manifests().values():
        print(f"{manifest.name:32} {manifest.gguf_bytes / 1e6:5.0f} MB  {manifest.licence}  {manifest.title}")


@db_app.command("upgrade")
def db_upgrade(catalog: Annotated[str, typer.Argument(help=_WHERE)]) -> None:
    """Bring a catalog to this program's schema revision (or create it)."""
    from ui.cli.catalog import upgrade

    upgrade(catalog)


@db_app.command("check")
def db_check(
    catalog: Annotated[str | None, typer.Argument(help=f"{_WHERE} Default: the model's own.")] = None,
    model: Model = DEFAULT_MODEL,
) -> None:
    """Check that a catalog opens, has this program's revision and is complete."""
    from ui.cli.show import check_catalog

    check_catalog(catalog, model)


@db_app.command("mask")
def db_mask(
    catalog: Annotated[str, typer.Argument(metavar="FILE", help=_WHERE)],
    words: Annotated[
        Path | None,
        typer.Option(help="Also mask the words in this text file, one on each line, wherever they stand alone."),
    ] = None,
) -> None:
    """Mask e-mail addresses, telephone and other long numbers, and keys in the corpus texts that a catalog shows.

    Builds do so by themselves; this is for catalogs of earlier ones, and for words that your users should not see in
    examples of what a feature fires on. All or nothing: it is one transaction. No reading changes.

    Example: sensecheck db mask artefacts/catalog.sqlite --words coarse-words.txt
    """
    from ui.cli.catalog import mask

    mask(catalog, words)


@db_app.command("copy")
def db_copy(
    source: Annotated[str, typer.Argument(metavar="FROM", help=_WHERE)],
    target: Annotated[str, typer.Argument(metavar="TO", help=_WHERE)],
    replace: Annotated[bool, typer.Option("--replace", help="Replace the catalog that TO holds.")] = False,
) -> None:
    """Copy a whole catalog, in one transaction, and check that it arrived: how a built one gets onto a server.

    Example: sensecheck db copy artefacts/catalog.sqlite postgresql://owner@db.example/senses
    """
    from ui.cli.catalog import copy

    copy(source, target, replace=replace)
