"""Put a reading of the prompt in front of a chat model: ``prompt | SAEAnnotator.from_catalog() | model``."""

from middleware.annotator import SAEAnnotator
from middleware.policy import Stats
from middleware.sources import CatalogSource, InspectionRequest, InspectionSource, ServerSource
from middleware.types import Annotated, Placement, Scope
from sae_runtime.detector.results import MentionReading, Misread, Reading, TokenReading
from sae_runtime.errors import SensecheckError
from sae_runtime.glossary import Glossary

__all__ = [
    "Annotated",
    "CatalogSource",
    "Glossary",
    "InspectionRequest",
    "InspectionSource",
    "MentionReading",
    "Misread",
    "Placement",
    "Reading",
    "SAEAnnotator",
    "Scope",
    "SensecheckError",
    "ServerSource",
    "Stats",
    "TokenReading",
]
