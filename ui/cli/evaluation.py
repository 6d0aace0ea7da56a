"""``sensecheck evaluate``: the fifty example prompts, every flag, precision and recall."""

from __future__ import annotations

import json
from pathlib import Path

from sae_runtime.build.stages import write_text
from sae_runtime.detector import Inspector
from sae_runtime.evaluation.examples import ExampleTable, read_examples


def run_evaluate(model: str, artefacts: Path | None, out: Path | None, *, as_json: bool) -> None:
    """Read the prompts in this process and print (or write) the table."""
    table: ExampleTable = read_examples(Inspector.from_model(model, artefacts=artefacts))
    if out is not None:
        write_text(out, table.markdown())
    print(json.dumps(table.figures(), indent=1) if as_json else table.markdown())
