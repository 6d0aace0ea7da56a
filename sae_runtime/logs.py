"""What the ``sensecheck`` logger writes in our own commands and in the server: one line per record, as text or JSON.

A library must not configure logging; programs that import the middleware keep theirs. Only ``sensecheck serve`` and
``sensecheck chat``, and the processes that they start, call :func:`configure`.

Numbers of an event stand in ``record.fields`` (``logger.info("inspection", extra={"fields": {...}})``). No record of ours
holds text of a prompt; of a foreign error only its class and the lines of code are written, since its message may.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import traceback
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

from pythonjsonlogger.json import JsonFormatter as _JsonFormatter

from sae_runtime.errors import SensecheckError

LogFormat = Literal["text", "json"]
FORMAT_VARIABLE = "SENSECHECK_LOG_FORMAT"
LEVEL_VARIABLE = "SENSECHECK_LOG_LEVEL"
_HANDLER = "sensecheck"
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")  # a value must neither begin a line nor move a cursor


def configure(log_format: LogFormat, level: str = "INFO", *, stream: TextIO | None = None) -> logging.Handler:
    """Write the ``sensecheck`` logger's records to ``stream`` (standard error); calling it again replaces the last choice.

    Raises:
        ValueError: there is no such format or level.
    """
    if log_format not in ("text", "json"):
        raise ValueError(f"There is no log format '{log_format}'.")
    logger = logging.getLogger("sensecheck")
    for handler in [known for known in logger.handlers if known.name == _HANDLER]:
        logger.removeHandler(handler)
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.name = _HANDLER
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    logger.addHandler(handler)
    logger.setLevel(level.upper())
    logger.propagate = False  # vLLM and Gradio may have handlers of their own on the root
    return handler


def configure_from_environment() -> None:
    """The same in a process that ``sensecheck serve`` started; elsewhere nothing happens."""
    chosen = os.environ.get(FORMAT_VARIABLE)
    if chosen:
        configure("json" if chosen == "json" else "text", os.environ.get(LEVEL_VARIABLE) or "INFO")


class JsonFormatter(_JsonFormatter):
    """One JSON object per record, with vLLM's names: ``asctime`` (UTC), ``levelname``, ``name``, ``process``, ``message``;
    then the record's fields, and ``error`` where there is one."""

    def __init__(self) -> None:
        super().__init__(json_ensure_ascii=True)  # no control character or line end of a value reaches the file

    def add_fields(self, log_data: dict[str, Any], record: logging.LogRecord, message_dict: dict[str, Any]) -> None:
        """See the base class."""
        log_data |= {
            "asctime": _time(record),
            "levelname": record.levelname,
            "name": record.name,
            "process": record.process,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info and record.exc_info[1]:
            log_data["error"] = inert_traceback(record.exc_info[1])


class TextFormatter(logging.Formatter):
    """``LEVEL TIME [logger] message name=value ...``, on one line but for tracebacks."""

    def format(self, record: logging.LogRecord) -> str:
        """See the base class."""
        fields = getattr(record, "fields", {})
        words = [record.getMessage(), *(f"{name}={value}" for name, value in fields.items() if value is not None)]
        line = f"{record.levelname} {_time(record)} [{record.name}] {' '.join(words)}"
        line = _CONTROL.sub(lambda found: repr(found[0])[1:-1], line)
        if record.exc_info and record.exc_info[1]:
            line += "\n" + inert_traceback(record.exc_info[1])
        return line


def inert_traceback(error: BaseException) -> str:
    """Where an error came from. Messages are written for errors of ours only, without what they quote."""
    lines: list[str] = []
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        # Names of files and functions, and line numbers; a line of source holds no values.
        lines += [f"{at.filename}:{at.lineno} in {at.name}" for at in traceback.extract_tb(cause.__traceback__)]
        words = f": {cause.unquoted()}" if isinstance(cause, SensecheckError) else ""
        lines.append(f"{type(cause).__name__}{words}")
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return "\n".join(lines)


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
