"""What can be seen of the server's inspections: metrics, a span, one log line, and, if asked for, the prompt log.

Each inspection is a block ``with observer.inspection(...)``. Inside it, :func:`timed` and :func:`step` measure steps and
:func:`verdict` brings the result; an error that leaves the block is the reason why the prompt went unread.
"""

from __future__ import annotations

import contextlib
import logging
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, TypeVar

from sae_runtime import tracing
from sae_runtime.detector import Detector, Plan, Reading
from sae_runtime.detector.notes import choose_notes, joined_notes
from sae_runtime.engines.chat import ChatMessage
from sae_runtime.engines.features import PromptFeatures
from sae_runtime.serving import metrics
from sae_runtime.serving.prompt_log import PromptLog

logger = logging.getLogger("sensecheck")

Route = Literal["inspect", "one_call"]
Step = Literal["compile", "queue", "plan", "read", "judge"]
T = TypeVar("T")

_CURRENT: ContextVar[Inspection | None] = ContextVar("sensecheck_inspection", default=None)


@dataclass
class Inspection:
    """One inspection while it runs.

    Attributes:
        route: by which route it was asked for.
        messages: the conversation, when it is one of texts.
        domain: the declared domain.
        id: a random name; the same in the log, the span and the prompt log.
        seconds: what the steps took.
        plan, reading: what was to be read, and the verdict, once there is one.
        notes, note_tokens: number and length of the notes.
    """

    route: Route
    messages: Sequence[ChatMessage] = ()
    domain: str | None = None
    id: str = field(default_factory=lambda: uuid.uuid4().hex[:16])
    seconds: dict[Step, float] = field(default_factory=dict)
    plan: Plan | None = None
    reading: Reading | None = None
    notes: int = 0
    note_tokens: int = 0

    def took(self, name: Step, seconds: float) -> None:
        """Add to a step's time."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    @property
    def flags(self) -> int:
        """Number of misread mentions."""
        return len(self.reading.misreads) if self.reading else 0


class Observer:
    """Observes inspections; safe to share between tasks.

    Args:
        prompts: where prompts are logged, if the deployer asked for it.
    """

    def __init__(self, prompts: PromptLog | None = None) -> None:
        self._prompts = prompts

    @contextmanager
    def inspection(
        self, route: Route, messages: Sequence[ChatMessage] = (), domain: str | None = None
    ) -> Iterator[Inspection]:
        """Observe the block as one inspection of ``messages``. Errors pass."""
        seen = Inspection(route, messages, domain)
        token = _CURRENT.set(seen)
        began = time.perf_counter()
        reason: str | None = None
        with tracing.span("sensecheck.inspection", "SERVER") as span, metrics.IN_FLIGHT.track_inprogress():
            try:
                yield seen
            except BaseException as error:
                reason = metrics.reason_of(error)
                raise
            finally:
                total = time.perf_counter() - began
                _count(seen, reason, total)
                _describe(span, seen, reason)
                _log(seen, reason, total)
                if self._prompts is not None:
                    self._prompts.put(_record(seen, reason))
                with contextlib.suppress(ValueError):  # a task that is destroyed unfinished ends in another context
                    _CURRENT.reset(token)


@contextmanager
def step(name: Step) -> Iterator[None]:
    """Measure the block as a step of the current inspection, if there is one."""
    seen, began = _CURRENT.get(), time.perf_counter()
    try:
        yield
    finally:
        if seen is not None:
            seen.took(name, time.perf_counter() - began)


def timed(name: Step | None, call: Callable[[], T]) -> Callable[[], T]:
    """``call``, for another thread: measured as a step of the current inspection, and how long it waited for the thread."""
    seen, asked = _CURRENT.get(), time.perf_counter()
    if seen is None or name is None:
        return call

    def run() -> T:
        began = time.perf_counter()
        seen.took("queue", began - asked)
        try:
            return call()
        finally:
            seen.took(name, time.perf_counter() - began)

    return run


def verdict(detector: Detector, plan: Plan, features: PromptFeatures | None) -> Callable[[], Reading]:
    """:meth:`Detector.reading`, for another thread: the current inspection is told."""
    seen = _CURRENT.get()

    def judge() -> Reading:
        reading = detector.reading(plan, features)
        if seen is not None:
            seen.plan, seen.reading = plan, reading
            if notes := choose_notes(reading.misreads).notes:
                seen.notes, seen.note_tokens = len(notes), len(detector.encoder.encode_text(joined_notes(notes)))
        return reading

    return judge


def _count(seen: Inspection, reason: str | None, total: float) -> None:
    metrics.INSPECTIONS.labels(seen.route, _outcome(seen, reason)).inc()
    metrics.DURATION.labels(seen.route).observe(total)
    for name, seconds in seen.seconds.items():
        metrics.STEPS.labels(name).observe(seconds)
    if reason is not None:
        metrics.BYPASSES.labels(seen.route, reason).inc()
    elif seen.reading is not None and seen.plan is not None:
        metrics.NOTE_TOKENS.inc(seen.note_tokens)
        concepts = {placed.mention.concept.slug: placed.mention.concept for placed in seen.plan.mentions}
        for misread in seen.reading.misreads:
            metrics.count_flag(concepts[misread.concept])


def _outcome(seen: Inspection, reason: str | None) -> str:
    return "unread" if reason is not None else "flagged" if seen.flags else "clear"


def _describe(span: tracing.Span, seen: Inspection, reason: str | None) -> None:
    span.set(id=seen.id, route=seen.route, outcome=_outcome(seen, reason), flags=seen.flags)
    if seen.reading is not None:
        span.set(mentions=len(seen.reading.mentions), notes=seen.notes, note_tokens=seen.note_tokens)
    if seen.plan is not None:
        span.set(tokens=len(seen.plan.chat.token_ids))
    for name, seconds in seen.seconds.items():
        span.set(**{f"{name}.seconds": round(seconds, 6)})
    if reason is not None:
        span.fail(reason)


def _log(seen: Inspection, reason: str | None, total: float) -> None:
    """One line: numbers and names of ours, nothing of the prompt, not even which concept was misread."""
    if not logger.isEnabledFor(logging.INFO):
        return
    fields = {
        "id": seen.id,
        "trace": tracing.trace_id(),
        "route": seen.route,
        "outcome": _outcome(seen, reason),
        "reason": reason,
        "messages": len(seen.messages),
        "tokens": len(seen.plan.chat.token_ids) if seen.plan else None,
        "mentions": len(seen.reading.mentions) if seen.reading else None,
        "flags": seen.flags,
        "notes": seen.notes,
        "note_tokens": seen.note_tokens,
        **{f"{name}_ms": round(seconds * 1e3, 2) for name, seconds in seen.seconds.items()},
        "total_ms": round(total * 1e3, 2),
    }
    logger.info("inspection", extra={"fields": fields})


def _record(seen: Inspection, reason: str | None) -> dict[str, Any]:
    """What the prompt log keeps. Places of mentions would be wrong after redaction, so they are left out."""
    reading = seen.reading
    kept = {"concept", "read_as", "intended", "p_read_as", "p_intended", "note"}
    return {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "id": seen.id,
        "trace": tracing.trace_id(),
        "route": seen.route,
        "domain": seen.domain,
        "outcome": _outcome(seen, reason),
        "reason": reason,
        "messages": seen.messages,
        "misreads": [misread.model_dump(include=kept) for misread in reading.misreads] if reading else [],
    }
