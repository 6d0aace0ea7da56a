"""The detector: mentions, readings, intended senses and misreads."""

from sae_runtime.detector.detector import Detector, Plan
from sae_runtime.detector.inspector import Inspector
from sae_runtime.detector.results import FeatureActivation, MentionReading, Misread, Reading, TokenReading

__all__ = [
    "Detector",
    "FeatureActivation",
    "Inspector",
    "MentionReading",
    "Misread",
    "Plan",
    "Reading",
    "TokenReading",
]
