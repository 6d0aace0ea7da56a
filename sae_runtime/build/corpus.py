"""Corpus stage: sources to token sequences, weighted, de-duplicated and split by document."""

from __future__ import annotations

import hashlib
import json
import random
import sys
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch

from sae_runtime.build.config import BuildConfig
from sae_runtime.build.corpus_config import DatasetSource, Source
from sae_runtime.build.sources import Document, Origin, find_origin, read_documents
from sae_runtime.build.stages import Stage, read_tensors, stage_key, write_tensors
from sae_runtime.engines.chat import ChatEncoder
from sae_runtime.errors import InputError
from sae_runtime.progress import Advance, progress

SPLITS = ("train", "validation", "test")

_DEFINITION = 3  # raise it when the same sources give other sequences, so that finished corpora are not used on


def run_corpus(config: BuildConfig, encoder: ChatEncoder) -> Stage:
    """The finished corpus stage, for whoever has no plan: see :func:`fill_corpus`."""
    stage = Stage(config.model, "corpus", corpus_key(config, encoder))
    if not stage.done:
        fill_corpus(stage, config, encoder)
    return stage


def fill_corpus(stage: Stage, config: BuildConfig, encoder: ChatEncoder) -> None:
    """Make the token sequences of all splits.

    Output per split: ``<split>.safetensors`` with ``tokens`` int32 ``[total]``, ``lengths`` and ``sources`` (number of the
    source) int32 ``[sequences]``.
    The summary has ``tokens`` per split, and ``sources``: per source its licence, hashes, documents, tokens per split
    and the number of duplicates dropped.

    Raises:
        InputError: a source cannot be read, or the sources hold too little text.
    """
    taken = _take_all(config, encoder)
    totals: dict[str, int] = {}
    for split in SPLITS:
        rows = [(ids, number) for number, part in enumerate(taken) for ids in part.sequences[split]]
        if not rows:
            raise InputError(f"The corpus has no text for the {split} split.", "Add sources or raise their weights.")
        random.Random(config.seed).shuffle(rows)
        totals[split] = sum(len(ids) for ids, _ in rows)
        write_tensors(
            stage.folder / f"{split}.safetensors",
            {
                "tokens": torch.tensor([token for ids, _ in rows for token in ids], dtype=torch.int32),
                "lengths": torch.tensor([len(ids) for ids, _ in rows], dtype=torch.int32),
                "sources": torch.tensor([number for _, number in rows], dtype=torch.int32),
            },
        )
    stage.finish({"tokens": totals, "sources": [part.record() for part in taken]})


def corpus_key(config: BuildConfig, encoder: ChatEncoder) -> str:
    """Key of the corpus stage: settings, seed, hashes of the text, chat template and vocabulary.

    Raises:
        InputError: a source's files are not there, or its dataset cannot be opened.
    """
    origins = {source.name: find_origin(config.corpus, source) for source in config.corpus.sources}
    hashes = {name: [origin.sha256, origin.revision] for name, origin in origins.items()}
    settings = config.corpus.model_dump(mode="json", exclude={"root"})
    vocabulary = sorted(encoder.tokenizer.get_vocab().items())
    return stage_key(_DEFINITION, settings, hashes, config.seed, encoder.tokenizer.chat_template, vocabulary)


def load_sequences(stage: Stage, split: str) -> list[list[int]]:
    """Token sequences of one split of a finished corpus stage."""
    data = read_tensors(stage.folder / f"{split}.safetensors")
    return [part.tolist() for part in data["tokens"].split(data["lengths"].tolist())]


def load_sources(stage: Stage, split: str) -> tuple[list[str], list[int]]:
    """Names of the sources, and for each sequence of one split the number of its source."""
    data = read_tensors(stage.folder / f"{split}.safetensors")
    return [source["name"] for source in stage.summary()["sources"]], data["sources"].tolist()


def document_hash(document: Document) -> bytes:
    """SHA-256 of a document's words: equal for documents that differ in case, spacing and punctuation alone.

    It decides what is a duplicate and to which split a document goes, so near-identical documents share a split.
    Symbols such as ``+`` and ``=`` count as words. A text of punctuation alone is hashed as it is.
    """
    if isinstance(document, str):
        words: Any = _words(document)
    else:
        words = [[message["role"], _words(message["content"])] for message in document]
    return hashlib.sha256(json.dumps(words).encode()).digest()


@dataclass
class _Taken:
    """What one source gave.

    Attributes:
        sequences: token sequences by split.
        documents: number of documents that they come from.
        duplicates: number of documents dropped because one like them had been taken before.
    """

    source: Source
    origin: Origin
    sequences: dict[str, list[list[int]]] = field(default_factory=lambda: {split: [] for split in SPLITS})
    documents: int = 0
    duplicates: int = 0

    def record(self) -> dict[str, Any]:
        """The source's entry in the stage's summary, which the card repeats."""
        record = {
            "name": self.source.name,
            "licence": self.source.licence,
            "sha256": self.origin.sha256,
            "documents": self.documents,
            "tokens": {split: sum(map(len, rows)) for split, rows in self.sequences.items()},
            "duplicates": self.duplicates,
        }
        if isinstance(self.source, DatasetSource):
            record["dataset"] = {
                "path": self.source.path,
                "config_name": self.source.config_name,
                "split": self.source.split,
                "revision": self.origin.revision,
            }
        return record


def _take_all(config: BuildConfig, encoder: ChatEncoder) -> list[_Taken]:
    corpus = config.corpus
    budgets = {"train": corpus.train_tokens, "validation": corpus.validation_tokens, "test": corpus.test_tokens}
    total_weight = sum(source.weight for source in corpus.sources)
    seen: set[bytes] = set()
    taken = []
    with progress("corpus", sum(budgets.values())) as advance:
        for source in corpus.sources:
            shares = {split: int(tokens * source.weight / total_weight) for split, tokens in budgets.items()}
            part = _Taken(source, find_origin(corpus, source))
            _take(part, shares, seen, config, encoder, advance)
            taken.append(part)
    return taken


def _take(
    part: _Taken,
    shares: dict[str, int],
    seen: set[bytes],
    config: BuildConfig,
    encoder: ChatEncoder,
    advance: Advance,
) -> None:
    """Read one source until its shares of tokens are full; ``seen`` holds the hashes of all documents taken."""
    left = dict(shares)
    for document in _in_order(part, config.seed):
        digest = document_hash(document)
        split = _split_of(digest)
        if digest in seen:
            part.duplicates += 1
        elif left[split] > 0:
            seen.add(digest)
            pieces = list(_sequences(part.source.name, document, encoder, config.corpus.sequence_length))
            part.documents += bool(pieces)
            for ids in pieces:
                if left[split] > 0:
                    part.sequences[split].append(ids)
                    left[split] -= len(ids)
                    advance(len(ids), part.source.name)
        if all(tokens <= 0 for tokens in left.values()):
            return


def _in_order(part: _Taken, seed: int) -> Iterator[Document]:
    """Files are read whole and shuffled; a dataset may be too large for that and keeps its order."""
    documents = read_documents(part.source, part.origin)
    if isinstance(part.source, DatasetSource):
        return documents
    shuffled = list(documents)
    random.Random(seed).shuffle(shuffled)
    return iter(shuffled)


def _split_of(digest: bytes) -> str:
    bucket = digest[0] * 100 // 256
    return "test" if bucket < 6 else "validation" if bucket < 12 else "train"


def _sequences(source: str, document: Document, encoder: ChatEncoder, length: int) -> Iterator[list[int]]:
    """A conversation gives its head, up to two sequences; plain text gives all of its passages."""
    if isinstance(document, str):
        ids = encoder.encode_text(document)
        starts = range(0, len(ids), length)
    else:
        try:
            ids = encoder.encode_text(encoder.render(document, reply=False))
        except InputError as error:
            start = document[0]["content"][:60]
            raise InputError(
                f"Corpus source '{source}', the conversation that begins '{start}': {error.message}", error.remedy
            ) from error
        starts = range(0, min(len(ids), 2 * length), length)
    for begin in starts:
        if len(piece := ids[begin : begin + length]) >= 8:
            yield piece


def _words(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().translate(_separators()).split()) or text


@cache
def _separators() -> dict[int, str]:
    """Punctuation, separators and control characters to spaces, format characters (zero width) to nothing.

    Not ``\\W``: it also matches the vowel signs of many scripts, and with them most of a word would be lost.
    """
    table = {}
    for code in range(sys.maxunicode + 1):
        kind = unicodedata.category(chr(code))
        if kind == "Cf":
            table[code] = ""
        elif kind == "Cc" or kind[0] in "PZ":
            table[code] = " "
    return table
