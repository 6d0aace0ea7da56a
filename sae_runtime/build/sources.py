"""Corpus sources to documents: local text, dialogues, JSON records and chats, and what `datasets` opens."""

from __future__ import annotations

import csv
import hashlib
import importlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sae_runtime.build.corpus_config import (
    ChatSource,
    CorpusConfig,
    DatasetSource,
    DialogueSource,
    RecordSource,
    Source,
    TextSource,
)
from sae_runtime.engines.chat import ChatMessage
from sae_runtime.errors import InputError

Document = str | list[ChatMessage]
Record = dict[str, Any]

_BLOCK_CHARACTERS = 8_000  # plain text is split by blocks of this size, so that neighbouring passages share a split
_SPECIAL = re.compile(r"<\|[^|>]{1,40}\|>")  # template tokens inside data would end a message early
_COMMIT = re.compile(r"[0-9a-f]{40}")
_ROLES = {
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    "human": "user",  # the last two are ShareGPT's
    "gpt": "assistant",
}


@dataclass(frozen=True)
class Origin:
    """Where a source's text is and what identifies it.

    Attributes:
        location: folder or hub name that ``load_dataset`` opens; empty for sources of files.
        files: local files, sorted; none for a dataset on the hub.
        sha256: first 16 hex digits of each file's hash.
        revision: commit of a dataset on the hub, or its fingerprint where it has no commit.
    """

    location: str = ""
    files: list[Path] = field(default_factory=list)
    sha256: list[str] = field(default_factory=list)
    revision: str | None = None


def find_origin(corpus: CorpusConfig, source: Source) -> Origin:
    """Locate ``source`` and hash what it will be read from.

    A dataset's ``path`` is taken as a folder below the corpus root if there is one. A hub dataset is looked up at the
    hub, unless its ``revision`` is a full commit.

    Raises:
        InputError: a pattern matches nothing, or the dataset cannot be opened.
    """
    if isinstance(source, DatasetSource):
        return _dataset_origin(corpus.root / source.path, source)
    files = source_files(corpus, source)
    return Origin(files=files, sha256=[_sha256(path) for path in files])


def source_files(corpus: CorpusConfig, source: TextSource | DialogueSource | RecordSource | ChatSource) -> list[Path]:
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


def read_documents(source: Source, origin: Origin) -> Iterator[Document]:
    """All documents of ``source`` in its own order: plain passages, or conversations.

    Template tokens inside the text are removed. A conversation with an empty message is skipped; empty system
    messages are dropped. A dataset is streamed, so that no more records are read than are taken from this iterator.

    Raises:
        InputError: a file or record is malformed; the message names source, file and line (or record).
    """
    for document in _documents(source, origin):
        if cleaned := _without_template_tokens(document):
            yield cleaned


def _documents(source: Source, origin: Origin) -> Iterator[Document]:
    if isinstance(source, DatasetSource):
        for place, record in _dataset_records(source, origin):
            yield _dataset_document(source, place, record)
        return
    for path in origin.files:
        if isinstance(source, TextSource):
            yield from _text_blocks(path.read_text("utf-8", errors="replace"))
        elif isinstance(source, DialogueSource):
            yield from _dialogues(source, path)
        elif isinstance(source, RecordSource):
            for place, record in _json_records(source.name, path):
                yield _pair(source.user, source.assistant, place, record)
        else:
            for place, record in _json_records(source.name, path):
                yield _chat(source.messages, place, record)


def _without_template_tokens(document: Document) -> Document:
    if isinstance(document, str):
        return _remove_special(document)
    messages: list[ChatMessage] = []
    for message in document:
        content = _remove_special(message["content"]).strip()
        if content:
            messages.append({"role": message["role"], "content": content})
        elif message["role"] != "system":
            return []
    return messages


def _remove_special(text: str) -> str:
    found = 1
    while found:  # removing one may join the halves of another
        text, found = _SPECIAL.subn("", text)
    return text


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
            rows = csv.DictReader(file)
            if source.column not in (rows.fieldnames or ()):
                raise InputError(
                    f"Corpus source '{source.name}': {path} has no column '{source.column}'.",
                    f"Its columns: {', '.join(rows.fieldnames or ())}.",
                )
            blocks = [row[source.column] or "" for row in rows]
    else:
        blocks = _read(source.name, path).split("\n\n")
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


def _json_records(name: str, path: Path) -> Iterator[tuple[str, Record]]:
    """Records of a ``.json`` array or a JSON-lines file, each with its place for error messages."""
    text = _read(name, path)
    file = f"Corpus source '{name}': {path}"
    records: Iterator[tuple[str, Any]]
    if path.suffix == ".json":
        array = _parse(text, file)
        if not isinstance(array, list):
            raise InputError(f"{file} is no JSON array.", "Wrap the records in [ ], or name the file .jsonl.")
        records = ((f"{file}, record {number}", record) for number, record in enumerate(array, 1))
    else:
        lines = ((f"{file}, line {number}", line) for number, line in enumerate(text.split("\n"), 1))
        records = ((place, _parse(line, place)) for place, line in lines if line.strip())
    for place, record in records:
        if not isinstance(record, dict):
            raise InputError(f"{place} is no JSON object.", 'Each record needs named fields, as in {"text": "..."}.')
        yield place, record


def _read(name: str, path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"Corpus source '{name}': {path} is not UTF-8: {error}.", "Convert the file.") from error


def _parse(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise InputError(f"{place} is no JSON: {error}.", "Correct or remove it.") from error


def _pair(user: str, assistant: str, place: str, record: Record) -> list[ChatMessage]:
    fields = {name: "" if value is None else value for name, value in record.items()}
    try:
        return [
            {"role": "user", "content": user.format_map(fields)},
            {"role": "assistant", "content": assistant.format_map(fields)},
        ]
    except (KeyError, ValueError, IndexError, AttributeError, TypeError) as error:
        raise InputError(
            f"{place} does not fit the formats of user and assistant: {error!r}.",
            f"Its fields: {', '.join(record)}.",
        ) from error


def _chat(name: str, place: str, record: Record) -> list[ChatMessage]:
    messages = _value(name, place, record)
    if not isinstance(messages, list):
        raise InputError(
            f"{place}: the field '{name}' is no list of messages.",
            "Name the field that holds the conversation with `messages`, or remove the record.",
        )
    return [_message(f"{place}, message {number}", message) for number, message in enumerate(messages, 1)]


def _message(place: str, message: Any) -> ChatMessage:
    if not isinstance(message, dict):
        raise InputError(f"{place} is no JSON object.", "A message has role and content, or from and value.")
    role, content = ("from", "value") if "from" in message and "role" not in message else ("role", "content")
    if message.get(role) not in _ROLES:
        raise InputError(
            f"{place} has the {role} {message.get(role)!r}.",
            f"Known: {', '.join(_ROLES)}. Rename it, or remove the conversation.",
        )
    if not isinstance(message.get(content), str):
        raise InputError(f"{place} has no text in '{content}'.", "Fill it in, or remove the conversation.")
    return {"role": _ROLES[message[role]], "content": message[content]}


def _value(name: str, place: str, record: Record) -> Any:
    if name not in record:
        raise InputError(
            f"{place} has no field '{name}'.",
            f"Its fields: {', '.join(record)}. Correct the name in the configuration.",
        )
    return record[name]


def _dataset_document(source: DatasetSource, place: str, record: Record) -> Document:
    if source.messages is not None:
        return _chat(source.messages, place, record)
    if source.user is not None and source.assistant is not None:
        return _pair(source.user, source.assistant, place, record)
    text = _value(source.text or "", place, record)
    if not isinstance(text, str | None):
        raise InputError(f"{place}: the column '{source.text}' holds no text.", "Name a column of strings.")
    return text or ""


def _dataset_origin(folder: Path, source: DatasetSource) -> Origin:
    location = str(folder) if folder.exists() else source.path
    if not folder.exists() and _COMMIT.fullmatch(source.revision or ""):
        return Origin(location, revision=source.revision)  # says everything, so a finished corpus needs no network
    builder = _dataset_builder(source, location, source.revision)
    by_split = builder.config.data_files or {}  # None when an offline machine falls back to the library's cache
    names = by_split.get(source.split) or [name for names in by_split.values() for name in names]
    files = sorted(path for name in names if (path := Path(name)).is_file())
    if files and len(files) == len(names):
        return Origin(location, files, [_sha256(path) for path in files])
    return Origin(location, revision=builder.hash)


def _dataset_builder(source: DatasetSource, location: str, revision: str | None) -> Any:
    try:
        datasets = importlib.import_module("datasets")
    except ImportError as error:
        raise InputError(
            f"Corpus source '{source.name}' needs the package `datasets`: {error}.",
            "Install it: pip install 'sensecheck[build]'.",
        ) from error
    try:
        return datasets.load_dataset_builder(location, name=source.config_name, revision=revision)
    except Exception as error:  # its own errors, those of the hub's client, of httpx and of the file formats
        raise _dataset_error(source, error) from error


def _dataset_records(source: DatasetSource, origin: Origin) -> Iterator[tuple[str, Record]]:
    pinned = origin.revision if _COMMIT.fullmatch(origin.revision or "") else source.revision
    builder = _dataset_builder(source, origin.location, pinned)
    if origin.revision and builder.hash != origin.revision:  # offline, the library's cache may hold another one
        raise InputError(
            f"Corpus source '{source.name}': instead of commit {origin.revision} of '{source.path}', {builder.hash} "
            "was opened.",
            "Run with access to the hub, or correct the revision.",
        )
    place = f"Corpus source '{source.name}': {source.path}, split {source.split}"
    try:
        for number, record in enumerate(builder.as_streaming_dataset(split=source.split), 1):
            yield f"{place}, record {number}", record
    except Exception as error:  # as above: most of the reading happens here
        raise _dataset_error(source, error) from error


def _dataset_error(source: DatasetSource, error: Exception) -> InputError:
    return InputError(
        f"Corpus source '{source.name}': the dataset '{source.path}' cannot be read: {error}.",
        "Check path, config_name, split and revision. Without access to the hub, copy the dataset's files to a folder "
        "below the corpus root and name the folder as path.",
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
