"""Describe stage: per latent a predicate that a machine can check, a sentence for people, and contexts over all strengths.

Only the explain part (the head of the train split) is looked at. How far a description can be trusted is measured by the
validate stage on other documents.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_runtime.build.corpus import load_sequences, load_sources
from sae_runtime.build.features.encoded import Encoded
from sae_runtime.build.features.firings import histogram
from sae_runtime.build.features.predicates import Finder, Halves, Predicate, from_json
from sae_runtime.build.features.promoted import promoted_tokens
from sae_runtime.build.features.tokens import TokenTable, Words
from sae_runtime.build.harvest import PLACES, load_head
from sae_runtime.build.stages import Stage, write_text
from sae_runtime.build.train import load_trained
from sae_runtime.build.workers import Span, Workers, complete, spans
from sae_runtime.models import ResolvedModel

EXPLAIN_TOKENS = 260_000
_QUANTILES = (1.0, 1.0, 1.0, 0.75, 0.5, 0.25)  # strengths of the contexts that are kept; 1.0 is the strongest left
_LABEL_WORDS = 5
_LATENTS = 256  # that a task describes
_FILE = "features.jsonl"
_BEFORE, _AFTER = 14, 6

Writer = Callable[[str], str]  # a language model: prompt to answer


@dataclass
class Description:
    """A latent on the explain part.

    Attributes:
        index: in the full dictionary.
        label: a few words.
        sentence: what it fires on, for people.
        predicate: the same for machines, see :mod:`.predicates`; empty when none was found.
        promoted: tokens that the decoder direction makes more likely.
        density: share of tokens on which it fires.
        max_activation: strongest activation.
        histogram: of its activations, see :func:`.firings.histogram`; None when it never fired.
        contexts: ``{text, start, end, activation}``, strongest first, one per document.
    """

    index: int
    label: str = "never fired"
    sentence: str = "Did not fire on the text that was looked at."
    predicate: dict[str, Any] = field(default_factory=dict)
    promoted: list[str] = field(default_factory=list)
    density: float = 0.0
    max_activation: float = 0.0
    histogram: dict[str, Any] | None = None
    contexts: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Described:
    """The describe stage's results in memory: descriptions and their predicates by latent index."""

    items: list[Description]
    predicates: list[Predicate | None]


def run_describe(
    stage: Stage,
    model: ResolvedModel | None,
    corpus: Stage,
    encoded: Encoded,
    tokenizer: Any,
    words: Words,
    workers: Workers,
) -> None:
    """Describe every latent; writes ``features.jsonl`` in index order. Deterministic.

    Args:
        stage: where it is written.
        model: whose output head tells what directions promote; None leaves that out (the control).
        corpus: finished corpus stage.
        encoded: the dictionary's firings on the explain part.
        tokenizer: the model's.
        words: its tokens as words.
        workers: who describes.
    """
    encoded.make(workers)
    sae = load_trained(encoded.trained)
    promoted = promoted_tokens(model, sae, tokenizer) if model else [[]] * sae.d_sae
    tasks = spans(stage.parts, "features", sae.d_sae, _LATENTS, ".jsonl")
    complete(workers, Describe(encoded, corpus, tokenizer, words, promoted), tasks, "describe", "latents")
    lines = "".join(task.path.read_text("utf-8") for task in tasks)
    write_text(stage.folder / _FILE, lines)
    found = sum(bool(item.predicate) for item in _read(stage.folder / _FILE))
    stage.finish({"features": sae.d_sae, "explain_tokens": encoded.rows, "with_predicate": found})


@dataclass(frozen=True)
class Describe:
    """The job of describing latents; ``promoted`` are the tokens that each latent's direction promotes."""

    encoded: Encoded
    corpus: Stage
    tokenizer: Any
    words: Words
    promoted: list[list[str]]

    @contextmanager
    def open(self) -> Iterator[Callable[[Span], None]]:
        """See :class:`~sae_runtime.build.workers.Job`."""
        places = load_head(self.encoded.harvest, self.encoded.split, self.encoded.rows, PLACES)
        sequences = load_sequences(self.corpus, self.encoded.split)
        names, sources = load_sources(self.corpus, self.encoded.split)
        table = TokenTable.of(self.words, places, sequences, sources)
        firings = self.encoded.load()
        choose = table.sequence % 2 == 1
        place = np.where(choose, np.cumsum(choose), np.cumsum(~choose)) - 1  # row number inside its half
        finder = Finder(Halves(table.rows(~choose), table.rows(choose), names))

        def describe(latent: int) -> Description:
            rows, values = firings.of(latent)
            half = choose[rows]
            predicate = finder.best(place[rows[~half]], place[rows[half]])
            item = Description(index=latent, promoted=self.promoted[latent])
            if len(rows):
                item.density = len(rows) / len(table)
                item.max_activation = float(values.max())
                item.histogram = histogram(values, item.max_activation)
                item.contexts = _contexts(rows, values, table, sequences, self.tokenizer)
                item.label = _label(table, rows, values)
                item.predicate = predicate.to_json() if predicate else {}
                item.sentence = template_sentence(predicate, item)
            return item

        def write(span: Span) -> None:
            items = [describe(latent) for latent in range(span.start, span.stop)]
            write_text(span.path, "".join(json.dumps(asdict(item), ensure_ascii=False) + "\n" for item in items))

        yield write


def explained(stage: Stage, trained: Stage, harvest: Stage) -> Encoded:
    """The firings that ``stage`` describes: those of the dictionary ``trained`` on the explain part of ``harvest``."""
    rows = len(load_head(harvest, "train", EXPLAIN_TOKENS, PLACES)["token"])
    return Encoded(stage.parts, "explain", trained, harvest, "train", rows)


def load_described(stage: Stage, words: Words) -> Described:
    """The results of a finished stage."""
    items = _read(stage.folder / _FILE)
    return Described(items, [from_json(item.predicate, words) for item in items])


def _read(path: Path) -> list[Description]:
    with path.open(encoding="utf-8") as lines:  # splitlines() would cut at U+2028
        return [Description(**json.loads(line)) for line in lines]


def template_sentence(predicate: Predicate | None, item: Description) -> str:
    """The sentence of a build without a language model: the predicate in words, and what the direction promotes."""
    text = predicate.sentence() if predicate else f"No rule was found; strongest on “{item.label}”."
    if item.promoted:
        text += " Promotes " + ", ".join(f"“{token}”" for token in item.promoted) + "."
    return text


def written_sentence(writer: Writer, item: Description) -> str:
    """A language model's sentence for the same evidence; the template's when it says nothing usable."""
    contexts = "\n".join(
        f"- {c['text'][: c['start']]}<<{c['text'][c['start'] : c['end']]}>>{c['text'][c['end'] :]}"
        for c in item.contexts
    )
    answer = writer(
        "A feature of a language model fires on the words marked <<like this>>:\n"
        f"{contexts}\nA rule that predicts it: {item.sentence}\n"
        "Say in one short sentence what the feature fires on. Answer with the sentence alone."
    )
    line = " ".join(answer.split())
    return line[:300] if len(line) >= 10 else item.sentence


def _label(table: TokenTable, rows: NDArray[Any], values: NDArray[Any]) -> str:
    words, inverse = np.unique(table.word[rows], return_inverse=True)
    order = np.argsort(-np.bincount(inverse, weights=values), kind="stable")
    names = [table.words.names[word] for word in words[order[: 4 * _LABEL_WORDS]]]
    readable = [name for name in dict.fromkeys(names) if "\ufffd" not in name]
    return ", ".join(readable[:_LABEL_WORDS]) or "bytes of rare characters"


def _contexts(
    rows: NDArray[Any], values: NDArray[Any], table: TokenTable, sequences: list[list[int]], tokenizer: Any
) -> list[dict[str, Any]]:
    """Firings at several strengths, at most one per text, strongest first."""
    order = np.argsort(-values, kind="stable")
    contexts: list[dict[str, Any]] = []
    used: set[int] = set()
    for quantile in _QUANTILES:
        for place in order[int((1 - quantile) * len(order)) :][: 10 * len(_QUANTILES)]:
            row = int(rows[place])
            sequence, position = int(table.sequence[row]), int(table.position[row])
            if sequence in used:
                continue
            used.add(sequence)
            contexts.append(_context(sequences[sequence], position, float(values[place]), tokenizer))
            break
    return contexts


def _context(ids: list[int], position: int, activation: float, tokenizer: Any) -> dict[str, Any]:
    before = tokenizer.decode(ids[max(0, position - _BEFORE) : position])
    token = tokenizer.decode([ids[position]])
    after = tokenizer.decode(ids[position + 1 : position + 1 + _AFTER])
    return {
        "text": before + token + after,
        "start": len(before),
        "end": len(before) + len(token),
        "activation": round(activation, 3),
    }
