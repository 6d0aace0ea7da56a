"""Sense readings on words that no part of the build has seen: ten words of CoarseWSD-20 (Loureiro et al. 2021).

Per word a logistic regression is fitted on training sentences and scored on test sentences, from all latents of the
full dictionary and from the residual stream itself (the dense baseline), pooled over each reading site. Nothing is
chosen on the test part. Run ``python -m benchmarks.coarsewsd --data FOLDER/CoarseWSD-20``. The
full dictionary is needed (``--sae``): by default the newest one that ``sensecheck build`` left in its cache.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from sae_runtime.detector.sites import SITES, site_tokens
from sae_runtime.engines.chat import ChatEncoder
from sae_runtime.engines.features import encode_prompt
from sae_runtime.engines.transformers import TransformersEngine
from sae_runtime.models import resolve_model
from sae_runtime.models.manifest import SMALL_MODEL
from sae_runtime.paths import builds_dir
from sae_runtime.progress import progress
from sae_runtime.sae import SAE, load_sae

Array = NDArray[np.float32]


class Example(NamedTuple):
    """A sentence, the mention ``text[start:end]`` in it, and its sense."""

    text: str
    start: int
    end: int
    sense: str


def main(
    data: Annotated[Path, typer.Option(help="Folder with one folder per word, as CoarseWSD-20 has them.")],
    model: Annotated[str, typer.Option(help="Built-in model.")] = SMALL_MODEL,
    sae: Annotated[Path | None, typer.Option(help="Folder of the full dictionary.")] = None,
    train: Annotated[int, typer.Option(help="Training sentences per word.")] = 300,
    test: Annotated[int, typer.Option(help="Test sentences per word.")] = 200,
    seed: int = 0,
) -> None:
    """Read, fit, score; prints means over words and the table per word as JSON."""
    dictionary = load_sae(sae or newest_dictionary(model))
    folder = resolve_model(model).path
    engine = TransformersEngine(folder, int(dictionary.metadata["hook_name"].split(".")[1]))
    encoder = ChatEncoder(folder)
    words = sorted(path.name for path in data.iterdir() if path.is_dir())
    table = {}
    with progress("words", len(words)) as advance:
        for word in words:
            fit, held = load(data / word, "train", train, seed), load(data / word, "test", test, seed)
            x, y = features(fit, engine, encoder, dictionary), features(held, engine, encoder, dictionary)
            with threadpool_limits(1):  # many small regressions: threads would only wait for each other
                table[word] = {key: accuracy(x[key], fit, y[key], held) for key in x}
            advance(1, word)
    means = {key: round(float(np.mean([row[key] for row in table.values()])), 4) for key in table[words[0]]}
    about = {"model": model, "d_sae": dictionary.d_sae, "train": train, "test": test, "seed": seed}
    print(json.dumps({**about, "mean": means, "words": table}, indent=1))


def newest_dictionary(model: str) -> Path:
    """Folder of the full dictionary that was trained last for ``model``."""
    done = sorted((builds_dir() / model).glob("train-*/done.json"), key=lambda path: path.stat().st_mtime)
    if not done:
        raise SystemExit(f"No full dictionary of {model} here: run `sensecheck build {model} --to train`.")
    return done[-1].parent


def load(folder: Path, part: str, limit: int, seed: int) -> list[Example]:
    """A seeded sample of a word's sentences; the files hold tokenised text and the number of the mention's token."""
    lines = (folder / f"{part}.data.txt").read_text("utf-8").splitlines()
    senses = (folder / f"{part}.gold.txt").read_text("utf-8").split()
    examples = []
    for line, sense in zip(lines, senses, strict=True):
        number, text = line.split("\t", 1)
        words = text.split(" ")
        start = len(" ".join(words[: int(number)])) + (int(number) > 0)
        examples.append(Example(text, start, start + len(words[int(number)]), sense))
    random.Random(seed).shuffle(examples)
    return examples[:limit]


def features(examples: list[Example], engine: TransformersEngine, encoder: ChatEncoder, sae: SAE) -> dict[str, Array]:
    """Pooled features ``[examples, d_sae]`` and residuals ``[examples, d_model]`` by kind and site."""
    chats = [encoder.encode([{"role": "user", "content": example.text}]) for example in examples]
    order = sorted(range(len(examples)), key=lambda i: len(chats[i].token_ids))
    keys = [f"{kind} {site}" for kind in ("sae", "dense") for site in SITES]
    rows = {key: [torch.empty(0)] * len(order) for key in keys}
    for first in range(0, len(order), 16):
        batch = order[first : first + 16]
        for i, residual in zip(batch, engine.residual([chats[i].token_ids for i in batch]), strict=True):
            active = encode_prompt(sae, residual)
            for site in SITES:
                tokens = site_tokens(site, chats[i].spans, 0, examples[i].start, examples[i].end)
                rows[f"sae {site}"][i] = torch.from_numpy(active.pooled(tokens, sae.d_sae)).float()
                rows[f"dense {site}"][i] = residual[[t for t in tokens if active.content[t]]].mean(0)
    return {key: torch.stack(parts).numpy() for key, parts in rows.items()}


def accuracy(x: Array, fit: list[Example], y: Array, held: list[Example]) -> float:
    """Share of test sentences whose sense is found; the penalty is chosen by cross-validation on the training part.

    Senses with fewer than five training sentences cannot be cross-validated: they are left out, and missed.
    """
    labels, truth = np.array([example.sense for example in fit]), np.array([example.sense for example in held])
    senses = [sense for sense, count in Counter(labels.tolist()).items() if count >= 5]
    if len(senses) == 1:
        return round(float((truth == senses[0]).mean()), 4)
    kept = np.isin(labels, senses)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    search = GridSearchCV(model, {"logisticregression__C": [1e-4, 1e-3, 1e-2, 1e-1]}, cv=StratifiedKFold(3))
    return round(float(search.fit(x[kept], labels[kept]).score(y, truth)), 4)


if __name__ == "__main__":
    typer.run(main)
