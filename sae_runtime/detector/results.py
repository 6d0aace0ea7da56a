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

    ``reading`` is what the model understood, ``early`` what it took the mention for before it saw what follows (empty where that is
    not read), ``intended`` what is meant; all are probabilities by sense.
    """

    concept: str
    text: str
    message: int
    start: int
    end: int
    reading: dict[str, float]
    early: dict[str, float] = {}
    intended: dict[str, float]


class Misread(_Result):
    """A mention whose reading and intended sense disagree: what was read, what is meant, the note, what decided.

    With a sense that the user picked it is here however it was read; ``evidence`` says so. ``early``: ``read_as`` is what the mention was
    taken for at first, before the model saw what follows.
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
    early: bool = False
    evidence: list[str]
    note: str
    features: list[FeatureActivation]


class PlacedNote(_Result):
    """A note where it stands: ``note`` is ``content[start:end]`` of message number ``message`` of the annotated conversation.

    Whatever else looks like a note there is none of ours.
    """

    note: str
    message: int
    start: int
    end: int


class Imitation(_Result):
    """Text of the prompt, before anything was added, that looks like a note's frame: ``content[start:end]`` of message
    number ``message``, from its opening to its closing bracket if that is near."""

    message: int
    start: int
    end: int


class Reading(_Result):
    """The reading of one conversation.

    ``tokens`` is empty unless it was asked for. ``truncated`` says that the prompt was longer than the model's context
    and only its head was read, ``mentions_left_out`` how many mentions beyond the limit were not. ``imitations`` are the
    first places where the prompt itself looks like a note. ``catalog``: fingerprint of the catalog's file that it was made
    with, as the server's health names it; None for a catalog on a database server.
    """

    model: str
    mentions: list[MentionReading]
    misreads: list[Misread]
    tokens: list[TokenReading]
    truncated: bool
    mentions_left_out: int = 0
    imitations: list[Imitation] = []
    catalog: str | None = None
    timings_ms: dict[str, float] = {}

    def timed(self, marks: Sequence[float]) -> Reading:
        """The same reading with what its steps took.

        Args:
            marks: seconds (``perf_counter``) at the start and after planning, getting features and judging.
        """
        pairs = zip(("plan", "features", "detect"), pairwise(marks), strict=True)
        steps = {name: round((after - before) * 1e3, 2) for name, (before, after) in pairs}
        return self.model_copy(update={"timings_ms": {**steps, "total": round((marks[-1] - marks[0]) * 1e3, 2)}})
