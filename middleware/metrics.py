"""OpenTelemetry metrics, where its API is installed; otherwise nothing is measured.

Which exporter they go to is the application's choice (``opentelemetry.metrics.set_meter_provider``).

================================ ========= ==================================================================
name                             kind      attributes
================================ ========= ==================================================================
``sensecheck.inspections``       counter   ``flagged``: whether a word was misread
``sensecheck.flags``             counter   ``concept``: slug in the catalog or glossary
``sensecheck.bypasses``          counter   ``reason``: as in ``annotator.stats.bypassed``
``sensecheck.inspection.time``   histogram milliseconds that a reading took where it was made
================================ ========= ==================================================================

No attribute holds text of a prompt.
"""

from __future__ import annotations

from typing import Any

from sae_runtime.detector import Reading

try:
    from opentelemetry import metrics as _api
except ImportError:  # the application does not use OpenTelemetry
    _api = None  # type: ignore[assignment]


class _Metrics:
    """The instruments; made when something is first counted, so that the application can set its provider before."""

    def __init__(self) -> None:
        self._made: dict[str, Any] | None = None

    def count_reading(self, reading: Reading) -> None:
        """Count a reading that succeeded, and its flags."""
        if _api is None:
            return
        made = self._instruments()
        made["inspections"].add(1, {"flagged": bool(reading.misreads)})
        for misread in reading.misreads:
            made["flags"].add(1, {"concept": misread.concept})
        if "total" in reading.timings_ms:
            made["time"].record(reading.timings_ms["total"])

    def count_bypass(self, reason: str) -> None:
        """Count a bypass."""
        if _api is not None:
            self._instruments()["bypasses"].add(1, {"reason": reason})

    def _instruments(self) -> dict[str, Any]:
        if self._made is None:
            meter = _api.get_meter("sensecheck")
            self._made = {
                "inspections": meter.create_counter("sensecheck.inspections", "{prompt}", "Prompts that were read."),
                "flags": meter.create_counter("sensecheck.flags", "{mention}", "Mentions that were misread."),
                "bypasses": meter.create_counter("sensecheck.bypasses", "{prompt}", "Prompts that went on unread."),
                "time": meter.create_histogram("sensecheck.inspection.time", "ms", "Time of a reading."),
            }
        return self._made


METRICS = _Metrics()
