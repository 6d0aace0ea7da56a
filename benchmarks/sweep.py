"""Where a dictionary is best trained: ``python -m benchmarks.sweep MODEL --corpus PATH --layer 6 --layer 10 ...``.

One forward pass captures the residual stream after each layer and the output of its MLP. On each of these sites a small
dictionary is trained with the same tokens, steps, width and k, so that the figures can be compared with each other (not
with those of a full build). Printed per site: the fraction of variance unexplained on the test split, the mean L0 as a
share of the width, and how well a dense logistic probe at the site tells the senses of the homographs pack (five-fold on
the labelled contexts, pooled from the mention to the end): a site that is easy to reconstruct but does not hold the
meaning is of no use.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits
from torch import Tensor

from benchmarks.table import show
from sae_runtime.build.config import load_config
from sae_runtime.build.corpus import load_sequences, run_corpus
from sae_runtime.build.metrics import reconstruction_figures
from sae_runtime.build.train import Trainer
from sae_runtime.catalog.packs import load_packs
from sae_runtime.detector.sites import site_tokens
from sae_runtime.engines.chat import ChatEncoder
from sae_runtime.engines.dtype import compute_dtype
from sae_runtime.engines.features import content_mask
from sae_runtime.engines.transformers import decoder_layers
from sae_runtime.models import resolve_model
from sae_runtime.progress import progress

Site = tuple[int, str]  # layer, and "residual" or "mlp"


class Sites:
    """Captures several sites of a decoder in one forward pass."""

    def __init__(self, folder: Path, layers: list[int], dtype: torch.dtype) -> None:
        from transformers import AutoModel

        self._model = AutoModel.from_pretrained(folder, dtype=dtype).eval()
        stack = decoder_layers(self._model)
        del stack[max(layers) + 1 :]
        self.names: list[Site] = [(layer, kind) for layer in layers for kind in ("residual", "mlp")]
        self._kept: dict[Site, Tensor] = {}
        for layer, kind in self.names:
            module: Any = stack[layer] if kind == "residual" else stack[layer].mlp
            module.register_forward_hook(self._keep((layer, kind)))

    def _keep(self, site: Site) -> Any:
        def hook(module: Any, args: Any, output: Any) -> None:
            self._kept[site] = (output[0] if isinstance(output, tuple) else output)[0]

        return hook

    @torch.inference_mode()
    def capture(self, ids: list[int]) -> tuple[dict[Site, Tensor], Tensor]:
        """Activations ``[tokens, d]`` by site, and which tokens carry content in the deepest residual stream."""
        self._model(input_ids=torch.tensor([ids]), use_cache=False)
        deepest = max(layer for layer, _ in self.names)
        return dict(self._kept), content_mask(self._kept[deepest, "residual"])


def harvest(sites: Sites, sequences: list[list[int]], tokens: int, title: str) -> dict[Site, Tensor]:
    """bfloat16 ``[n, d]`` by site: the content tokens of the first sequences, about ``tokens`` of them."""
    kept: dict[Site, list[Tensor]] = {site: [] for site in sites.names}
    done = 0
    with progress(title, tokens) as advance:
        for ids in sequences:
            if done >= tokens:
                break
            found, content = sites.capture(ids)
            for site, x in found.items():
                kept[site].append(x[content].to(torch.bfloat16))
            done += len(ids)
            advance(len(ids))
    return {site: torch.cat(parts) for site, parts in kept.items()}


def probe(sites: Sites, encoder: ChatEncoder, concepts: int) -> dict[Site, float]:
    """Mean five-fold accuracy of dense probes of the senses of ``concepts`` homographs."""
    scores: dict[Site, list[float]] = {site: [] for site in sites.names}
    with threadpool_limits(1), progress("probes", concepts) as advance:
        for concept in load_packs(["homographs"])["homographs"][:concepts]:
            rows: dict[Site, list[Tensor]] = {site: [] for site in sites.names}
            labels = []
            for number, sense in enumerate(concept.senses.values()):
                for context in sense.labelled(held_out=False):
                    chat = encoder.encode([{"role": "user", "content": context.text}])
                    where = site_tokens("rest", chat.spans, 0, context.start, context.end)
                    for site, x in sites.capture(chat.token_ids)[0].items():
                        rows[site].append(x[where.start : where.stop].float().mean(0))
                    labels.append(number)
            for site, parts in rows.items():
                model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=500))
                scores[site].append(cross_val_score(model, torch.stack(parts).numpy(), np.array(labels), cv=5).mean())
            advance(1, concept.concept)
    return {site: float(np.mean(values)) for site, values in scores.items()}


@contextmanager
def scratch() -> Iterator[Path]:
    """A file that training may checkpoint to."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / "checkpoint.safetensors"


def main(
    model: str,
    corpus: Annotated[Path | None, typer.Option(help="Folder of the training text.")] = None,
    layer: Annotated[list[int] | None, typer.Option(help="0-based; may be repeated.")] = None,
    tokens: Annotated[int, typer.Option(help="Training tokens per site.")] = 120_000,
    expansion: Annotated[int, typer.Option(help="Width of the dictionaries in units of d_model.")] = 8,
    epochs: Annotated[float, typer.Option(help="Passes over the tokens.")] = 3.0,
    concepts: Annotated[int, typer.Option(help="Homographs to probe.")] = 20,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Sweep, print."""
    config = load_config(model, corpus_root=corpus)
    resolved = resolve_model(config.model)
    encoder = ChatEncoder(resolved.path)
    stage = run_corpus(config, encoder)
    sites = Sites(resolved.path, layer or [config.layer], compute_dtype(config.dtype))
    probes = probe(sites, encoder, concepts)
    train = harvest(sites, load_sequences(stage, "train"), tokens, "train")
    test = harvest(sites, load_sequences(stage, "test"), 20_000, "test")
    rows = []
    for site in sites.names:
        width = expansion * train[site].shape[1]
        settings = config.train.model_copy(update={"width": width, "k": width // 100, "epochs": epochs})
        trainer = Trainer(settings, train[site], seed=config.seed)
        with scratch() as checkpoint:
            trainer.run(checkpoint)
        figures = reconstruction_figures(trainer.export(test[site][:4_000].float(), {}), test[site])
        rows.append({
            "layer": site[0], "site": site[1], "fvu": round(figures["fvu"], 4),
            "l0 %": round(100 * figures["l0_fraction"], 3), "senses (dense probe)": round(probes[site], 4),
        })  # fmt: skip
        print(rows[-1], flush=True)
    show(rows, as_json=as_json)


if __name__ == "__main__":
    typer.run(main)
