"""Every error that Sensecheck raises on purpose, under one root.

::

    SensecheckError
    ├── InputError              a prompt, message, option or file given by the caller cannot be used
    │   └── PackError           a concept pack is malformed
    ├── ModelError              a model is unknown, incomplete or cannot be made ready
    │   ├── ChecksumError       downloaded bytes are not the pinned ones
    │   └── DownloadError       no source of a built-in model could be read
    ├── ArtefactError           an SAE or a catalog file is missing, truncated or corrupt
    │   ├── CatalogError        the feature catalog
    │   │   └── RevisionError   its schema is older or newer than this program
    │   └── FingerprintError    it belongs to another model, tokenizer, template, layer or SAE
    ├── EngineError             activations could not be captured
    ├── WorkerError             a build's workers cannot be reached, are not alike, or die again and again
    ├── ServerError             the model server cannot start, answer or be reached
    │   └── UnavailableError    it is busy, restarting, or dropped the connection: asking again may help
    ├── InspectionTimeout       the reading missed its deadline
    └── CircuitOpenError        readings failed repeatedly and are suspended for a while

Each message names the input at fault; ``remedy`` says what to do about it. Commands print both and exit with code 2.
"""

from __future__ import annotations


class SensecheckError(Exception):
    """Root of all errors raised by this project.

    Args:
        message: what is wrong, naming the input at fault.
        remedy: what the reader can do about it.
    """

    quoted: str = ""

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}".strip()

    def unquoted(self) -> str:
        """The error's text for logs: without ``quoted``, words in it that another program wrote and that may be a prompt's."""
        return str(self).replace(self.quoted, "[...]") if self.quoted else str(self)


class InputError(SensecheckError):
    """A prompt, message, option or file given by the caller cannot be used."""


class PackError(InputError):
    """A concept pack is malformed."""


class ModelError(SensecheckError):
    """A model is unknown, incomplete or cannot be made ready."""


class ChecksumError(ModelError):
    """Downloaded bytes are not the pinned ones."""


class DownloadError(ModelError):
    """No source of a built-in model could be read."""


class ArtefactError(SensecheckError):
    """An SAE or catalog file is missing, truncated or corrupt."""


class CatalogError(ArtefactError):
    """The feature catalog is missing, corrupt or locked, or its server cannot be used."""


class RevisionError(CatalogError):
    """The catalog's schema is older or newer than this program."""


class FingerprintError(ArtefactError):
    """An artefact belongs to another model, tokenizer, chat template, layer or SAE."""


class EngineError(SensecheckError):
    """Activations could not be captured."""


class WorkerError(SensecheckError):
    """A build's workers cannot be reached, are not alike, or die again and again."""


class ServerError(SensecheckError):
    """The model server cannot start, answer or be reached."""


class UnavailableError(ServerError):
    """The server is busy, restarting, or dropped the connection: asking again may help."""


class InspectionTimeout(SensecheckError):
    """The reading missed its deadline."""

    @classmethod
    def after(cls, deadline: float) -> InspectionTimeout:
        """The error for a deadline of so many seconds."""
        return cls(f"The reading took longer than {deadline:.3g} s.", "Raise `deadline`, or shorten the prompt.")


class CircuitOpenError(SensecheckError):
    """Readings failed repeatedly and are suspended for a while."""
