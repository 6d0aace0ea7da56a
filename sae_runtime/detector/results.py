"""What an inspection returns. Plain data, serialisable as JSON; the shapes are part of the public contract."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from pydantic import BaseModel, ConfigDict


class _Result(BaseModel):
    model_config = ConfigDict(frozen=True)


class FeatureActivation(_Result):
    """One latent: index in the full dictionary, its label, its activation (residual-stream units)."""

    index: int
    label: str
    activation: float


class TokenReading(_Result):
    """One prompt token: its text, where it stands (``message`` None for template text), its strongest features."""

    text: str
    message: int | None
    start: int
    end: int
    features: list[FeatureActivation]


class MentionReading(_Result):
    """One mention of a concept: ``text`` is ``content[start:end]`` of message number ``message``.

    ``reading`` is what the model understood, ``intended`` what is meant; both are probabilities by sense.
    """

    concept: str
    text: str
    message: int
    start: int
    end: int
    reading: dict[str, float]
    intended: dict[str, float]


class Misread(_Result):
    """A mention whose reading and intended sense disagree: what was read, what is meant, the note, what decided.

    With a sense that the user picked it is here however it was read; ``evidence`` says so.
    """

    concept: str
    text: str
    message: int
    start: int
    end: int
    read_as: str
    intended: str
    p_read_as: float
    p_intended: float
    evidence: list[str]
    note: str
    features: list[FeatureActivation]


class Reading(_Result):
    """The reading of one conversation.

    ``tokens`` is empty unless it was asked for. ``truncated`` says that the prompt was longer than the model's context
    and only its head was read.
    """

    model: str
    mentions: list[MentionReading]
    misreads: list[Misread]
    tokens: list[TokenReading]
    truncated: bool
    timings_ms: dict[str, float] = {}

    def timed(self, marks: Sequence[float]) -> Reading:
        """The same reading with what its steps took.

        Args:
            marks: seconds (``perf_counter``) at the start and after planning, getting features and judging.
        """
        pairs = zip(("plan", "features", "detect"), pairwise(marks), strict=True)
        steps = {name: round((after - before) * 1e3, 2) for name, (before, after) in pairs}
        return self.model_copy(update={"timings_ms": {**steps, "total": round((marks[-1] - marks[0]) * 1e3, 2)}})
