"""The prompts of one call on their way through a source of readings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from langchain_core.messages import BaseMessage
from langchain_core.runnables import RunnableConfig

from middleware.inputs import to_chat, to_messages
from middleware.scope import call_options, chosen
from middleware.sources import InspectionRequest, InspectionSource, Outcome
from middleware.types import Annotated
from sae_runtime.errors import InputError

if TYPE_CHECKING:
    from middleware.annotator import SAEAnnotator

_NOTHING = InspectionRequest([], [])


@dataclass
class Job:
    """One prompt.

    Attributes:
        source: who reads it.
        name: the source's among the annotator's ``sources``; empty for its own.
        messages: the prompt as messages.
        request: what the source is asked.
        outcome: the reading, or why there is none.
        unreadable: set when the input is nothing that a chat model takes; such an error is always raised.
        result: what the annotator made of it.
    """

    source: InspectionSource
    name: str = ""
    messages: list[BaseMessage] = field(default_factory=list)
    request: InspectionRequest = _NOTHING
    outcome: Outcome | None = None
    unreadable: Exception | None = None
    result: Annotated | None = None

    @classmethod
    def of(cls, annotator: SAEAnnotator, value: Any, config: RunnableConfig) -> Job:
        """The job for one input; errors are kept in it."""
        job = cls(annotator.source)
        try:
            job.messages = to_messages(value, annotator.messages_key)
        except Exception as error:
            job.unreadable = error
            return job
        try:
            options = call_options(config.get("configurable"))
            if name := options.pop("source", None):
                if name not in annotator.sources:
                    raise InputError(
                        f"There is no source '{name}'.", f"Known: {', '.join(annotator.sources) or 'none'}."
                    )
                job.source, job.name = annotator.sources[name], name
            own = {name: getattr(annotator, name) for name in ("domain", "glossary", "only", "without", "picks")}
            read = chosen(job.messages, annotator.read)
            # Other messages stay in: they are part of what the model sees.
            job.request = InspectionRequest(to_chat(job.messages), read, **{**own, **options})
        except Exception as error:
            job.outcome = error
        return job


def by_source(jobs: Iterable[Job]) -> list[list[Job]]:
    """The jobs that are still to be read, those of one source together."""
    groups: dict[int, list[Job]] = {}
    for job in jobs:
        if job.outcome is None and job.unreadable is None:
            groups.setdefault(id(job.source), []).append(job)
    return list(groups.values())


def settle(jobs: Sequence[Job], outcomes: Sequence[Outcome]) -> None:
    """Give each job its outcome.

    Raises:
        Exception: the first error of a source, when it could not read anything at all.
    """
    for job, outcome in zip(jobs, outcomes, strict=True):
        job.outcome = outcome
    errors = [job.outcome for job in jobs if isinstance(job.outcome, Exception)]
    if len(errors) == len(jobs):
        raise next((error for error in errors if not isinstance(error, InputError)), errors[0])


def fail(jobs: Sequence[Job], error: Exception) -> None:
    """Give the error to all jobs that have no outcome."""
    for job in jobs:
        if job.outcome is None:
            job.outcome = error
