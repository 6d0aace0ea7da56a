"""Put a reading of the prompt in front of a chat model: ``prompt | SAEAnnotator.from_catalog() | model``."""

from middleware.annotator import SAEAnnotator
from middleware.policy import Stats
from middleware.sources import CatalogSource, InspectionSource, ServerSource
from middleware.types import Annotated, Placement
from sae_runtime.detector.results import MentionReading, Misread, Reading, TokenReading
from sae_runtime.errors import SensecheckError

__all__ = [
    "Annotated",
    "CatalogSource",
    "InspectionSource",
    "MentionReading",
    "Misread",
    "Placement",
    "Reading",
    "SAEAnnotator",
    "SensecheckError",
    "ServerSource",
    "Stats",
    "TokenReading",
]
