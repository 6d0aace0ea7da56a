"""Describe stage: where each latent fires, a label from the tokens it prefers, and how far the label can be trusted.

Labels come from one part of the corpus and are scored on another: the label's token set is used as a predictor of
"the latent fires here" on the validation split.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sae_runtime.build.config import BuildConfig
from sae_runtime.build.corpus import load_sequences
from sae_runtime.build.harvest import load_residual
from sae_runtime.build.stages import Stage, read_tensors, stage_key, write_text
from sae_runtime.progress import progress
from sae_runtime.sae import SAE

EXPLAIN_TOKENS = 260_000
_LABEL_TOKENS = 5
_EXAMPLES = 3
_BEFORE, _AFTER = 14, 6
_BATCH = 4096


@dataclass
class Description:
    """A latent: label, firing statistics on the explain part, examples, and the label's scores on unseen text."""

    index: int
    label: str = "never fired"
    density: float = 0.0
    max_activation: float = 0.0
    examples: list[dict[str, Any]] = field(default_factory=list)
    samples: int = 0
    precision: float = 0.0
    recall: float = 0.0
    balanced_accuracy: float = 0.5


def run_describe(config: BuildConfig, corpus: Stage, harvest: Stage, train: Stage, sae: SAE, tokenizer: Any) -> Stage:
    """Describe every latent; writes ``features.jsonl`` in index order."""
    stage = Stage(config.model, "describe", stage_key(train.key, EXPLAIN_TOKENS, _LABEL_TOKENS, _EXAMPLES))
    if stage.done:
        return stage
    explain = _head(harvest, EXPLAIN_TOKENS)
    score = load_residual(harvest, "validation")
    with progress("describe", len(explain["token"]) + len(score["token"])) as advance:
        seen = _Firings.collect(sae, explain, advance)
        unseen = _Firings.collect(sae, score, advance)
    sequences = load_sequences(corpus, "train")
    described = [_describe(index, seen, unseen, explain, score, sequences, tokenizer) for index in range(sae.d_sae)]
    write_text(stage.folder / "features.jsonl", "".join(_line(item) for item in described))
    stage.finish(
        {"features": len(described), "explain_tokens": len(explain["token"]), "score_tokens": len(score["token"])}
    )
    return stage


def load_descriptions(stage: Stage) -> list[Description]:
    """Descriptions from a finished stage, by latent index."""
    with (stage.folder / "features.jsonl").open(encoding="utf-8") as lines:  # splitlines() would cut at U+2028
        return [Description(**json.loads(line)) for line in lines]


def _line(item: Description) -> str:

    return json.dumps(asdict(item), ensure_ascii=False) + "\n"


def _head(harvest: Stage, tokens: int) -> dict[str, torch.Tensor]:
    """The first rows of the train split, at least ``tokens`` if there are as many."""
    parts: list[dict[str, torch.Tensor]] = []
    for path in sorted(harvest.folder.glob("train-*.safetensors")):
        parts.append(read_tensors(path))
        if sum(len(part["token"]) for part in parts) >= tokens:
            break
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


@dataclass
class _Firings:
    """All (latent, row, activation) triples of a set of tokens, grouped by latent."""

    starts: NDArray[np.int64]
    rows: NDArray[np.int64]
    values: NDArray[np.float32]
    total: int

    @classmethod
    def collect(cls, sae: SAE, data: dict[str, torch.Tensor], advance: Any) -> _Firings:
        latents, rows, values = [], [], []
        residual = data["residual"]
        for start in range(0, len(residual), _BATCH):
            features = sae.encode(residual[start : start + _BATCH].float())
            row, latent = features.nonzero(as_tuple=True)
            latents.append(latent.to(torch.int32).numpy())
            rows.append((row + start).to(torch.int32).numpy())
            values.append(features[row, latent].numpy())
            advance(len(features))
        latent_of = np.concatenate(latents)
        order = np.argsort(latent_of, kind="stable")
        starts = np.searchsorted(latent_of[order], np.arange(sae.d_sae + 1))
        return cls(starts, np.concatenate(rows)[order], np.concatenate(values)[order], len(residual))

    def of(self, latent: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        part = slice(self.starts[latent], self.starts[latent + 1])
        return self.rows[part], self.values[part]


def _describe(
    index: int,
    seen: _Firings,
    unseen: _Firings,
    explain: dict[str, torch.Tensor],
    score: dict[str, torch.Tensor],
    sequences: list[list[int]],
    tokenizer: Any,
) -> Description:
    rows, values = seen.of(index)
    result = Description(index=index)
    if not len(rows):
        return result
    tokens = explain["token"].numpy()[rows]
    distinct, inverse = np.unique(tokens, return_inverse=True)
    weight = np.bincount(inverse, weights=values)
    ranked = distinct[np.argsort(-weight, kind="stable")]
    result.label = _label(ranked, tokenizer)
    result.density = len(rows) / seen.total
    result.max_activation = float(values.max())
    result.examples = _examples(rows, values, explain, sequences, tokenizer)
    # The label as a predictor: a token belongs to it when the latent fired on most of its occurrences.
    occurrences = np.bincount(explain["token"].numpy(), minlength=int(distinct.max()) + 1)[distinct]
    predicted = distinct[np.bincount(inverse) > 0.5 * occurrences]
    fires = np.zeros(unseen.total, dtype=bool)
    fires[unseen.of(index)[0]] = True
    says = np.isin(score["token"].numpy(), predicted)
    hits = int((fires & says).sum())
    result.samples = int(fires.sum())
    result.recall = hits / max(1, result.samples)
    result.precision = hits / max(1, int(says.sum()))
    specificity = 1 - (int(says.sum()) - hits) / max(1, unseen.total - result.samples)
    result.balanced_accuracy = (result.recall + specificity) / 2
    return result


def _label(ranked: NDArray[np.int64], tokenizer: Any) -> str:
    words: list[str] = []
    for token in ranked[: 4 * _LABEL_TOKENS]:
        word = tokenizer.decode([int(token)]).strip().lower() or "white space"
        if word not in words and "\ufffd" not in word:
            words.append(word)
        if len(words) == _LABEL_TOKENS:
            break
    return ", ".join(words) or "bytes of rare characters"


def _examples(
    rows: NDArray[np.int64],
    values: NDArray[np.float32],
    data: dict[str, torch.Tensor],
    sequences: list[list[int]],
    tokenizer: Any,
) -> list[dict[str, Any]]:
    """The strongest firings, at most one per text."""
    examples: list[dict[str, Any]] = []
    used: set[int] = set()
    for place in np.argsort(-values, kind="stable")[: 10 * _EXAMPLES]:
        row = int(rows[place])
        sequence, position = int(data["sequence"][row]), int(data["position"][row])
        if sequence in used:
            continue
        used.add(sequence)
        ids = sequences[sequence]
        before = tokenizer.decode(ids[max(0, position - _BEFORE) : position])
        token = tokenizer.decode([ids[position]])
        after = tokenizer.decode(ids[position + 1 : position + 1 + _AFTER])
        examples.append({
            "text": before + token + after,
            "start": len(before),
            "end": len(before) + len(token),
            "activation": round(float(values[place]), 3),
        })  # fmt: skip
        if len(examples) == _EXAMPLES:
            break
    return examples
