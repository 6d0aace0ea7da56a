"""The detector: mentions, readings, intended senses and misreads."""

from sae_runtime.detector.inspector import Inspector
from sae_runtime.detector.results import FeatureActivation, MentionReading, Misread, Reading, TokenReading

__all__ = ["FeatureActivation", "Inspector", "MentionReading", "Misread", "Reading", "TokenReading"]
