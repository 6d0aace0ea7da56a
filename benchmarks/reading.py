"""What a reading costs beside the bare forward pass it stands on: ``python -m benchmarks.reading``.

Arms, interleaved over several rounds on the same prompts: ``forward`` (baseline: tokenise and run the layers up to the
SAE's, nothing else), ``reading`` (the whole inspection), ``full`` (all layers of the model, what an answer's prefill
costs in the same engine). Prints medians in milliseconds and ratios to the baseline.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from time import perf_counter
from typing import Annotated, Any

import typer

from benchmarks.table import show
from sae_runtime.detector import Inspector
from sae_runtime.engines.transformers import TransformersEngine
from sae_runtime.models import resolve_model
from sae_runtime.models.manifest import SMALL_MODEL

_ROUNDS = 7
_SENTENCE = "The bass was too heavy to carry, so we left it by the bank of the river and waited for the crane. "


def measure(model: str, lengths: tuple[int, ...] = (64, 512, 1500)) -> list[dict[str, Any]]:
    """One row per prompt length in tokens."""
    inspector = Inspector.from_model(model)
    folder = resolve_model(model).path
    depth = TransformersEngine.depth(folder)
    full = TransformersEngine(folder, depth - 1)
    rows = []
    for length in lengths:
        words = _SENTENCE * (length // 16)
        ids = inspector.detector.encoder.encode_text(words)[: length - 40]
        messages: list[Any] = [{"role": "user", "content": inspector.detector.encoder.tokenizer.decode(ids)}]
        arms: dict[str, Callable[[], object]] = {
            "forward": lambda m=messages: inspector.engine.residual([inspector.detector.encoder.encode(m).token_ids]),
            "reading": lambda m=messages: inspector.inspect(m),
            "full": lambda m=messages: full.residual([inspector.detector.encoder.encode(m).token_ids]),
        }
        times: dict[str, list[float]] = {name: [] for name in arms}
        for turn in range(_ROUNDS + 1):
            for name, run in arms.items():
                began = perf_counter()
                run()
                if turn:  # the first round warms up
                    times[name].append((perf_counter() - began) * 1e3)
        medians = {name: round(median(values), 1) for name, values in times.items()}
        ratios = {f"{name}_ratio": round(medians[name] / medians["forward"], 3) for name in ("reading", "full")}
        rows.append({"tokens": len(inspector.detector.encoder.encode(messages).token_ids), **medians, **ratios})
    return rows


def main(
    model: Annotated[str, typer.Option(help="Built-in model.")] = SMALL_MODEL,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Measure and print."""
    show(measure(model), as_json=as_json)


if __name__ == "__main__":
    typer.run(main)
