"""OpenTelemetry spans, where its API is installed and the program has set a provider; otherwise next to nothing happens.

Attributes are numbers, flags, and names from this project's own vocabulary. Errors are named by their class: neither their
messages nor their tracebacks go into a span, since those may quote a prompt. Context travels in W3C ``traceparent``
headers. In the server the provider is vLLM's, when it is started with ``--otlp-traces-endpoint``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

try:
    from opentelemetry import context as _context
    from opentelemetry import trace as _api
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ImportError:  # the program does not use OpenTelemetry
    _api = None  # type: ignore[assignment]

_NAME = "sensecheck"
_HEADERS = ("traceparent", "tracestate")
Kind = Literal["INTERNAL", "SERVER"]


class Span:
    """The span that is open; every method does nothing where none is recorded."""

    def __init__(self, recorded: Any = None) -> None:
        self._recorded = recorded

    def set(self, **attributes: str | int | float | bool) -> None:
        """Set attributes ``sensecheck.NAME``."""
        if self._recorded is not None:
            self._recorded.set_attributes({f"{_NAME}.{name}": value for name, value in attributes.items()})

    def fail(self, reason: str) -> None:
        """Mark the span as failed for ``reason``, which must hold no text of a prompt."""
        if self._recorded is not None:
            self._recorded.set_status(_api.StatusCode.ERROR, reason)
            self._recorded.set_attribute("error.type", reason)


_NOTHING = Span()


@contextmanager
def span(name: str, kind: Kind = "INTERNAL") -> Iterator[Span]:
    """Run the block inside a span, which is the parent of those that begin there and of what :func:`outgoing` tells."""
    if _api is None:
        yield _NOTHING
        return
    tracer = _api.get_tracer(_NAME)
    options: dict[str, Any] = {"record_exception": False, "set_status_on_exception": False}
    with tracer.start_as_current_span(name, kind=_api.SpanKind[kind], **options) as opened:
        yield Span(opened) if opened.is_recording() else _NOTHING


@contextmanager
def incoming(headers: Mapping[str, str]) -> Iterator[None]:
    """Spans in the block belong to the trace that a request's ``headers`` name, unless one is open already."""
    if _api is None or _HEADERS[0] not in headers or _api.get_current_span().get_span_context().is_valid:
        yield
        return
    carrier = {name: headers[name] for name in _HEADERS if name in headers}
    token = _context.attach(TraceContextTextMapPropagator().extract(carrier))
    try:
        yield
    finally:
        _context.detach(token)


def outgoing(*, recorded: bool = False) -> dict[str, str]:
    """Headers that continue the current trace elsewhere; empty when there is none.

    Args:
        recorded: only when this process records the current span.
    """
    headers: dict[str, str] = {}
    if _api is not None and (not recorded or _api.get_current_span().is_recording()):
        TraceContextTextMapPropagator().inject(headers)
    return headers


def add_to(headers: list[tuple[bytes, bytes]]) -> None:
    """Add the current span, if it is recorded, to the raw headers of a request that names no trace."""
    if not any(name == _HEADERS[0].encode() for name, _ in headers):
        headers += [(name.encode(), value.encode()) for name, value in outgoing(recorded=True).items()]


def trace_id() -> str | None:
    """The current trace as 32 hexadecimal digits, for log lines; None when there is none."""
    if _api is None:
        return None
    context = _api.get_current_span().get_span_context()
    return f"{context.trace_id:032x}" if context.is_valid else None
