"""Options that several sub-commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sae_runtime.logs import FORMAT_VARIABLE, LogFormat

Model = Annotated[str, typer.Option("--model", "-m", help="Built-in name, local model folder, or hub id.")]
Artefacts = Annotated[
    Path | None, typer.Option(help="Folder with SAE and catalog; by default the ones shipped for the model.")
]
Catalog = Annotated[
    str | None,
    typer.Option(
        envvar="SENSECHECK_CATALOG",
        help="Another catalog than the folder's: a file, or a URL such as postgresql://user@host/database.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
Url = Annotated[str | None, typer.Option(help="A running `sensecheck serve`; by default one is found or started.")]
LogFormatOption = Annotated[
    LogFormat, typer.Option(envvar=FORMAT_VARIABLE, help="Log lines as text or as JSON, one object a line.")
]
Out = Annotated[Path, typer.Option(help="Folder for results; a run that was stopped goes on there.")]
Dictionary = Annotated[Path | None, typer.Option(help="Folder of another dictionary, such as the full one.")]
