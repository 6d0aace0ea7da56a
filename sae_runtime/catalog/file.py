"""A catalog as a file: which one it is, and whether it is still the one that was finished.

SQLite notices a file that is too short or whose pages make no sense, but not a changed letter. A finished catalog
therefore carries a seal: the CRC-32 of all its bytes, in the header field that SQLite leaves to applications
(``user_version``). Whatever is written later breaks the seal, and :func:`~sae_runtime.catalog.store.seal_catalog` makes
a new one. It guards against damage, not against forgery. Catalogs without a seal are read as they are.
"""

from __future__ import annotations

import hashlib
import sqlite3
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from sae_runtime.errors import CatalogError

Stamp = tuple[int, int, int, int]
"""Device, inode, size and modification time in ns: another one means another file, or one that was written to."""

_HEADER = 100  # bytes
_SEAL = slice(60, 64)  # of the header: "user version", big-endian
_BOOKKEEPING = (slice(24, 28), _SEAL, slice(92, 100))  # what SQLite itself changes when it writes the seal
_PIECE = 2**20


@dataclass(frozen=True)
class CatalogFile:
    """A catalog's file at one moment: its stamp, and the first 16 hex digits of the SHA-256 of its bytes."""

    stamp: Stamp
    fingerprint: str

    @classmethod
    def of(cls, path: Path) -> CatalogFile:
        """The file at ``path``.

        Raises:
            CatalogError: there is none, it cannot be read, or it was written to meanwhile.
        """
        before = stamp_of(path)
        if before is None:
            raise CatalogError(f"There is no catalog {path}.", "Put it back, or make one with `sensecheck build`.")
        try:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]
        except OSError as error:
            raise CatalogError(f"The catalog {path} cannot be read: {error.strerror}.", "Check the file.") from error
        if stamp_of(path) != before:
            raise CatalogError(f"The catalog {path} is being written.", "Replace it by renaming a finished file.")
        return cls(before, digest)


def stamp_of(path: Path) -> Stamp | None:
    """The file's stamp, by one call of ``stat``; None when there is no file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def write_seal(connection: sqlite3.Connection, path: Path) -> None:
    """Seal the file behind ``connection``, which has nothing open and no write-ahead log.

    Raises:
        sqlite3.DatabaseError: it cannot be written.
    """
    # The file is closed last: POSIX then drops all of this process's locks on it, SQLite's among them.
    with path.open("rb") as file:
        connection.execute("BEGIN IMMEDIATE")  # nobody writes between the checksum and the seal
        _, seal = _read(file)
        connection.execute(f"PRAGMA user_version = {seal - 2**32 if seal >= 2**31 else seal}")  # SQLite's is signed
        connection.execute("COMMIT")


def check_seal(path: Path) -> None:
    """Check that a sealed catalog has not changed since; one without a seal, or none at all, passes.

    Raises:
        CatalogError: it has.
    """
    try:
        with path.open("rb") as file:
            found, expected = _read(file)
    except OSError:
        return  # whoever opens it says what is wrong
    if found not in (0, expected):
        raise CatalogError(
            f"The catalog {path} is damaged: it is not the file that was finished.",
            "Restore it, or rebuild it with `sensecheck build`. If you changed it on purpose, seal it again with "
            f"`sensecheck db upgrade {path}`.",
        )


def _read(file: BinaryIO) -> tuple[int, int]:
    """The seal in the file (0: none), and the one that its bytes call for: their CRC-32 without the bookkeeping, not 0."""
    header = bytearray(file.read(_HEADER))
    found = int.from_bytes(header[_SEAL], "big")
    for field in _BOOKKEEPING:
        header[field] = bytes(len(header[field]))
    checksum = zlib.crc32(header)
    while piece := file.read(_PIECE):
        checksum = zlib.crc32(piece, checksum)
    return found, checksum or 1
