"""Detectors with glossaries, compiled once each and kept."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

from sae_runtime.glossary.terms import Glossary

if TYPE_CHECKING:  # the detector's package imports this module
    from sae_runtime.detector.detector import Detector

_KEPT = 32


class GlossaryCache:
    """The last glossaries' detectors by :attr:`Glossary.key`. Safe to share between threads.

    Two callers that miss the same glossary at once both compile it; the result is the same.
    """

    def __init__(self) -> None:
        self._detectors: OrderedDict[str, tuple[Glossary, Detector]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, glossary: Glossary) -> Detector | None:
        """The glossary's detector, if it is still kept."""
        with self._lock:
            if (found := self._detectors.get(glossary.key)) is not None:
                self._detectors.move_to_end(glossary.key)
            return found and found[1]

    def known(self) -> list[Glossary]:
        """The glossaries that are kept, the one used longest ago first."""
        with self._lock:
            return [glossary for glossary, _ in self._detectors.values()]

    def put(self, glossary: Glossary, detector: Detector) -> Detector:
        """Keep a detector; the one that was used longest ago goes."""
        with self._lock:
            self._detectors[glossary.key] = glossary, detector
            while len(self._detectors) > _KEPT:
                self._detectors.popitem(last=False)
        return detector
