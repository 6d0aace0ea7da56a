"""A new catalog takes the place of the one in service, without a restart and between two readings.

Whoever serves asks :meth:`CatalogWatch.changed` now and then: at most one call of ``stat`` a second. When the file at the
catalog's place is another one, :meth:`CatalogWatch.refresh` opens it beside the old one, on a thread that no reading waits
for. One that belongs to the model, the layer and the SAE that are in service takes the old one's place. Any other is
refused, and the old one stays: the log says so once, and :attr:`CatalogWatch.state` until it is put right.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sae_runtime.catalog.file import CatalogFile, Stamp, stamp_of
from sae_runtime.detector.artefacts import Artefacts
from sae_runtime.errors import CatalogError, FingerprintError

logger = logging.getLogger("sensecheck")

CHECK_SECONDS = 1.0
RETRY_SECONDS = 30.0  # after which a refused file is tried again although nobody touched it; it may have been locked


@dataclass(frozen=True)
class CatalogState:
    """Which catalog reads, and whether it is the one that lies there.

    Attributes:
        fingerprint: first 16 hex digits of the SHA-256 of the file in service.
        replaced: how often it was replaced since the start.
        refused: why what lies at its place now is not in service; None when it is.
    """

    fingerprint: str
    replaced: int = 0
    refused: str | None = None


class CatalogWatch:
    """Watches the file of the catalog in service. Safe to call from several threads.

    Args:
        path: where the catalog is.
        file: the file that is in service.
        prepare: opens and checks what lies there now, and returns what puts it in service; raises what is wrong with it.
    """

    def __init__(self, path: Path, file: CatalogFile, prepare: Callable[[], Callable[[], None]]) -> None:
        self.path = path
        self.state = CatalogState(file.fingerprint)
        self._prepare = prepare
        self._looked: Stamp | None = file.stamp
        self._serving = file.stamp
        self._next = self._again = time.monotonic() + CHECK_SECONDS
        self._lock = threading.Lock()

    @property
    def in_place(self) -> bool:
        """Whether the file that lies there is the one in service."""
        return stamp_of(self.path) == self._serving

    def changed(self) -> bool:
        """Whether :meth:`refresh` is to be called now; never more often than once a second."""
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + CHECK_SECONDS
        return stamp_of(self.path) != self._looked or (self.state.refused is not None and now >= self._again)

    def refresh(self) -> None:
        """Look at the file; put it in service, or say why not. Never raises; while one call works, others do nothing."""
        if not self._lock.acquire(blocking=False):
            return
        try:
            self._refresh()
        finally:
            self._lock.release()

    def _refresh(self) -> None:
        self._looked = stamp_of(self.path)
        try:
            file = CatalogFile.of(self.path)
            taken = file.fingerprint != self.state.fingerprint
            if taken:
                swap = self._prepare()
                if stamp_of(self.path) != file.stamp:
                    raise CatalogError(f"The catalog {self.path} is being written.", "Replace it by renaming.")
                swap()
        except Exception as error:  # whatever lies there, the old catalog stays in service
            self._refuse(f"{type(error).__name__}: {error}")
            return
        if taken:
            logger.warning("the catalog %s was replaced: %s now reads", self.path, file.fingerprint)
        elif self.state.refused:
            logger.warning("the catalog %s is the one in service again", self.path)
        self._looked = self._serving = file.stamp
        self.state = CatalogState(file.fingerprint, self.state.replaced + taken)

    def _refuse(self, reason: str) -> None:
        if reason != self.state.refused:
            logger.warning("the catalog %s is refused, the old one stays in service: %s", self.path, reason)
        self.state = CatalogState(self.state.fingerprint, self.state.replaced, reason)
        self._again = time.monotonic() + RETRY_SECONDS


def reopen(serving: Artefacts) -> Artefacts:
    """What lies in the folder of ``serving`` now, if the model that is running can be read with it.

    Raises:
        ArtefactError, FingerprintError: it is damaged, or belongs to another model or layer.
    """
    found = Artefacts.open(str(serving.model.path), folder=serving.folder, catalog=serving.elsewhere, fetch=False)
    if found.view.layer != serving.view.layer:
        raise FingerprintError(
            f"The catalog in {serving.folder} reads layer {found.view.layer}, "
            f"but layer {serving.view.layer} is being captured.",
            "Restart to use it.",
        )
    return found


def reopen_with_same_sae(serving: Artefacts) -> Artefacts:
    """Like :func:`reopen`, for whoever cannot exchange the SAE.

    Raises:
        ArtefactError, FingerprintError: see :func:`reopen`; or it was built on another SAE than ``serving``.
    """
    found = reopen(serving)
    if found.view.sae_fingerprint != serving.view.sae_fingerprint:
        raise FingerprintError(
            f"The catalog in {serving.folder} belongs to the SAE {found.view.sae_fingerprint}, "
            f"but {serving.view.sae_fingerprint} is loaded.",
            "Restart the server to use it, one replica after the other.",
        )
    return found
