"""Breaking what was whole: edits of bytes and of documents, as plain data that can be written down and replayed."""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import strategies as st

from .texts import Bytes, value_of

ByteEdit = tuple[str, int, int, bytes]
DocumentEdit = tuple[int, str, Any]

_BYTE_EDITS = ("flip", "flip", "flip", "write", "insert", "cut", "end", "zero", "repeat")
_DOCUMENT_EDITS = ("replace", "replace", "replace", "remove", "add", "wrap", "double", "text")


def byte_edits(most: int = 4) -> st.SearchStrategy[list[ByteEdit]]:
    """A few flipped, overwritten, inserted, cut or repeated stretches: (kind, place, length or mask, bytes)."""
    return st.binary(max_size=10 * most).map(_byte_edits)


def document_edits(most: int = 4) -> st.SearchStrategy[list[DocumentEdit]]:
    """A few replaced, removed, added, wrapped or doubled parts: (part, kind, value)."""
    return st.binary(max_size=10 * most).map(_document_edits)


def _byte_edits(data: bytes) -> list[ByteEdit]:
    source, edits = Bytes(data), []
    while source:
        kind = _BYTE_EDITS[source.next() % len(_BYTE_EDITS)]
        place, number = source.number(), 1 + (source.next() if kind == "flip" else 16 * source.next())
        piece = bytes(source.next() for _ in range(source.next() % 6)) if kind in ("write", "insert") else b""
        edits.append((kind, place, min(number, 255) if kind == "flip" else number, piece))
    return edits


def _document_edits(data: bytes) -> list[DocumentEdit]:
    source, edits = Bytes(data), []
    while source:
        part, kind = source.next() << 4 | source.next() % 16, _DOCUMENT_EDITS[source.next() % len(_DOCUMENT_EDITS)]
        edits.append((part, kind, None if kind in ("remove", "wrap", "double") else value_of(source)))
    return edits


def damaged(data: bytes, edits: list[ByteEdit]) -> bytes:
    """``data`` after ``edits``; places count modulo its length."""
    result = bytearray(data)
    for kind, place, number, piece in edits:
        at = place % (len(result) + 1)
        if kind == "flip" and result:
            result[at % len(result)] ^= number
        elif kind == "write":
            result[at : at + len(piece)] = piece
        elif kind == "insert":
            result[at:at] = piece
        elif kind == "cut":
            del result[at : at + number]
        elif kind == "end":
            del result[at:]
        elif kind == "zero":
            result[at : at + number] = bytes(len(result[at : at + number]))
        elif kind == "repeat":
            result[at:at] = result[at : at + number]
    return bytes(result)


def edited(document: Any, edits: list[DocumentEdit]) -> Any:
    """A copy of ``document`` after ``edits``; parts count modulo their number."""
    root = [copy.deepcopy(document)]
    for number, kind, value in edits:
        if not (parts := list(_parts(root))):
            break
        holder, key = parts[number % len(parts)]
        _edit(holder, key, kind, copy.deepcopy(value))
    return root[0] if root else None


def _edit(holder: Any, key: Any, kind: str, value: Any) -> None:
    if kind == "remove":
        del holder[key]
    elif kind == "wrap":
        holder[key] = [holder[key]]
    elif kind == "add" and isinstance(holder[key], dict):
        holder[key][value if isinstance(value, str | int) else "extra"] = value
    elif kind == "add" and isinstance(holder[key], list):
        holder[key].append(value)
    elif kind == "double" and isinstance(holder[key], list | str):
        holder[key] = holder[key] * 2
    elif kind == "text":
        holder[key] = str(value)
    else:
        holder[key] = value


def _parts(holder: Any) -> Any:
    """(holder, key) of every part of a document, outer ones first."""
    keys = list(holder) if isinstance(holder, dict) else range(len(holder)) if isinstance(holder, list) else []
    for key in keys:
        yield holder, key
    for key in keys:
        yield from _parts(holder[key])
