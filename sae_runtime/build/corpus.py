"""Corpus stage: local text to token sequences, weighted, de-duplicated and split by document."""

from __future__ import annotations

import csv
import hashlib
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from sae_runtime.build.config import BuildConfig, CorpusConfig, DialogueSource, RecordSource, Source, TextSource
from sae_runtime.build.stages import Stage, read_tensors, stage_key, write_tensors
from sae_runtime.engines.chat import ChatEncoder, ChatMessage
from sae_runtime.errors import InputError
from sae_runtime.progress import progress

SPLITS = ("train", "validation", "test")
Document = str | list[ChatMessage]

_BLOCK_CHARACTERS = 8_000  # plain text is split by blocks of this size, so that neighbouring passages share a split
_SPECIAL = re.compile(r"<\|[^|>]{1,40}\|>")  # template tokens inside data would end a message early


def run_corpus(config: BuildConfig, encoder: ChatEncoder) -> Stage:
    """Make the token sequences of all splits; returns the finished stage.

    Output per split: ``<split>.safetensors`` with ``tokens`` int32 ``[total]`` and ``lengths`` int32 ``[sequences]``.

    Raises:
        InputError: a source matches no file, or the sources hold too little text.
    """
    corpus = config.corpus
    files = {source.name: source_files(corpus, source) for source in corpus.sources}
    hashes = {name: [hashlib.sha256(p.read_bytes()).hexdigest()[:16] for p in paths] for name, paths in files.items()}
    settings = corpus.model_dump(mode="json", exclude={"root"})
    stage = Stage(config.model, "corpus", stage_key(settings, hashes, config.seed, encoder.tokenizer.chat_template))
    if stage.done:
        return stage
    budgets = {"train": corpus.train_tokens, "validation": corpus.validation_tokens, "test": corpus.test_tokens}
    sequences: dict[str, list[list[int]]] = {split: [] for split in SPLITS}
    total_weight = sum(source.weight for source in corpus.sources)
    seen: set[bytes] = set()
    with progress("corpus", sum(budgets.values())) as advance:
        for source in corpus.sources:
            left = {split: int(tokens * source.weight / total_weight) for split, tokens in budgets.items()}
            documents = list(read_documents(source, files[source.name]))
            random.Random(config.seed).shuffle(documents)
            for document in documents:
                digest = hashlib.sha256(json.dumps(document).encode()).digest()
                split = _split_of(digest)
                if digest in seen or left[split] <= 0:
                    continue
                seen.add(digest)
                for ids in _sequences(document, encoder, corpus.sequence_length):
                    sequences[split].append(ids)
                    left[split] -= len(ids)
                    advance(len(ids), source.name)
                if all(tokens <= 0 for tokens in left.values()):
                    break
    for split, rows in sequences.items():
        if not rows:
            raise InputError(f"The corpus has no text for the {split} split.", "Add sources or raise their weights.")
        random.Random(config.seed).shuffle(rows)
        write_tensors(
            stage.folder / f"{split}.safetensors",
            {
                "tokens": torch.tensor([token for ids in rows for token in ids], dtype=torch.int32),
                "lengths": torch.tensor([len(ids) for ids in rows], dtype=torch.int32),
            },
        )
    stage.finish(
        {
            "tokens": {split: sum(map(len, rows)) for split, rows in sequences.items()},
            "sources": [{"name": s.name, "licence": s.licence, "sha256": hashes[s.name]} for s in corpus.sources],
        }
    )
    return stage


def load_sequences(stage: Stage, split: str) -> list[list[int]]:
    """Token sequences of one split of a finished corpus stage."""
    data = read_tensors(stage.folder / f"{split}.safetensors")
    return [part.tolist() for part in data["tokens"].split(data["lengths"].tolist())]


def source_files(corpus: CorpusConfig, source: Source) -> list[Path]:
    """The files of ``source``, sorted.

    Raises:
        InputError: a pattern matches nothing.
    """
    files: list[Path] = []
    for pattern in source.paths:
        found = sorted(corpus.root.glob(pattern))
        if not found:
            raise InputError(
                f"Corpus source '{source.name}': no file like {corpus.root / pattern}.",
                "Pass --corpus PATH, set SENSECHECK_CORPUS, or edit the build configuration.",
            )
        files += found
    return files


def read_documents(source: Source, files: list[Path]) -> Iterator[Document]:
    """All documents of ``source``: plain passages, or conversations."""
    for path in files:
        if isinstance(source, TextSource):
            yield from _text_blocks(path.read_text("utf-8", errors="replace"))
        elif isinstance(source, DialogueSource):
            yield from _dialogues(source, path)
        else:
            yield from _records(source, path)


def _text_blocks(text: str) -> Iterator[str]:
    block: list[str] = []
    for paragraph in re.split(r"\n\s*\n", text):
        block.append(re.sub(r"[ \t]+", " ", paragraph.strip()))
        if sum(map(len, block)) >= _BLOCK_CHARACTERS:
            yield "\n\n".join(block)
            block = []
    if block:
        yield "\n\n".join(block)


def _dialogues(source: DialogueSource, path: Path) -> Iterator[list[ChatMessage]]:
    if source.column:
        with path.open(newline="", encoding="utf-8") as file:
            blocks = [row[source.column] for row in csv.DictReader(file)]
    else:
        blocks = path.read_text("utf-8").split("\n\n")
    roles = {source.user: "user", source.assistant: "assistant"}
    for block in blocks:
        messages: list[ChatMessage] = []
        for line in block.splitlines():
            speaker, _, text = line.partition(":")
            role = roles.get(speaker.strip())
            if not role or not text.strip():
                continue
            if messages and messages[-1]["role"] == role:
                messages[-1]["content"] += "\n" + text.strip()
            else:
                messages.append({"role": role, "content": text.strip()})
        if messages and messages[0]["role"] == "assistant":
            messages = messages[1:]
        if messages:
            yield messages


def _records(source: RecordSource, path: Path) -> Iterator[list[ChatMessage]]:
    text = path.read_text("utf-8")
    lines = [text] if path.suffix == ".json" else [line for line in text.split("\n") if line.strip()]
    try:
        records: list[dict[str, Any]] = (
            json.loads(text) if path.suffix == ".json" else [json.loads(line) for line in lines]
        )
        pairs = [(source.user.format_map(record), source.assistant.format_map(record)) for record in records]
    except (ValueError, KeyError) as error:
        raise InputError(
            f"Corpus source '{source.name}': {path} cannot be read: {error!r}.", "Check file and fields."
        ) from error
    for request, answer in pairs:
        user, assistant = _SPECIAL.sub("", request).strip(), _SPECIAL.sub("", answer).strip()
        if user and assistant:
            yield [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]


def _split_of(digest: bytes) -> str:
    bucket = digest[0] * 100 // 256
    return "test" if bucket < 6 else "validation" if bucket < 12 else "train"


def _sequences(document: Document, encoder: ChatEncoder, length: int) -> Iterator[list[int]]:
    """A conversation gives its head, up to two sequences; plain text gives all of its passages."""
    if isinstance(document, str):
        ids = encoder.encode_text(document)
        starts = range(0, len(ids), length)
    else:
        ids = encoder.encode_text(encoder.render(document, reply=False))
        starts = range(0, min(len(ids), 2 * length), length)
    for start in starts:
        if len(piece := ids[start : start + length]) >= 8:
            yield piece
