"""Where readings come from: artefacts in this process, or a Sensecheck server."""

from middleware.sources.base import InspectionRequest, InspectionSource, Outcome
from middleware.sources.catalog import CatalogSource
from middleware.sources.server import ServerSource

__all__ = ["CatalogSource", "InspectionRequest", "InspectionSource", "Outcome", "ServerSource"]
