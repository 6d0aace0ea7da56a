"""Errors of the disk, told with what to do about them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from sqlalchemy.exc import DBAPIError

from sae_runtime.errors import ArtefactError

GO_ON = "Make room, or check the permissions, and run the build again: it goes on where it was."


@contextmanager
def writing(path: Path, remedy: str = GO_ON) -> Iterator[None]:
    """What goes wrong with files in the block, as an error that names ``path``.

    Raises:
        ArtefactError: the disk is full, or may not be written to.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:  # safetensors has its own exception class, for the disk's errors too
        reason = error.strerror if isinstance(error, OSError) else error
        raise ArtefactError(f"{path} cannot be written: {reason}.", remedy) from error
    except DBAPIError as error:
        raise ArtefactError(f"{path} cannot be written: {error.orig}.", remedy) from error
