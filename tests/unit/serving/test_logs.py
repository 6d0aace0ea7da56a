"""Log lines as text and as JSON, and what never stands in one."""

from __future__ import annotations

import io
import json
import logging
from datetime import datetime

import pytest

from sae_runtime import logs
from sae_runtime.errors import EngineError, InputError

LOGGER = logging.getLogger("sensecheck")


@pytest.fixture
def stream() -> io.StringIO:
    return io.StringIO()


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_json_lines_have_vllms_names_and_the_fields(stream: io.StringIO) -> None:
    logs.configure("json", stream=stream)
    LOGGER.info("inspection", extra={"fields": {"id": "ab", "total_ms": 1.5, "reason": None}})
    (line,) = lines(stream)
    assert datetime.fromisoformat(str(line.pop("asctime"))).utcoffset() is not None
    assert isinstance(line.pop("process"), int)
    assert line == {
        "levelname": "INFO", "name": "sensecheck", "message": "inspection", "id": "ab", "total_ms": 1.5, "reason": None
    }  # fmt: skip


def test_text_lines_leave_out_what_is_not_known(stream: io.StringIO) -> None:
    logs.configure("text", stream=stream)
    LOGGER.info("inspection", extra={"fields": {"id": "ab", "total_ms": 1.5, "reason": None}})
    level, _, rest = stream.getvalue().split(" ", 2)
    assert (level, rest) == ("INFO", "[sensecheck] inspection id=ab total_ms=1.5\n")


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_no_value_begins_a_line_of_its_own(stream: io.StringIO, log_format: logs.LogFormat) -> None:
    logs.configure(log_format, stream=stream)
    LOGGER.warning("one\ntwo %s", "three\r\nfour\u2028\x1b[2J", extra={"fields": {"reason": "six\nseven"}})
    assert len(stream.getvalue().splitlines()) == 1
    assert "\x1b" not in stream.getvalue()


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_of_a_foreign_error_only_class_and_place_are_written(stream: io.StringIO, log_format: logs.LogFormat) -> None:
    logs.configure(log_format, stream=stream)
    try:
        try:
            raise ValueError("prompt-canary")
        except ValueError as error:
            raise EngineError("The engine broke.", "Mend it.") from error
    except EngineError:
        LOGGER.exception("inspection failed")
    written = stream.getvalue()
    assert "prompt-canary" not in written
    assert "EngineError: The engine broke. Mend it." in written
    assert "ValueError" in written
    assert "test_logs.py" in written


def test_of_our_errors_what_they_quote_is_left_out(stream: io.StringIO) -> None:
    logs.configure("json", stream=stream)
    error = InputError("The server answered 400: prompt-canary.", "See its log.")
    error.quoted = "prompt-canary"
    try:
        raise error
    except InputError:
        LOGGER.exception("refused")
    assert "InputError: The server answered 400: [...]. See its log." in str(lines(stream)[0]["error"])
    assert "prompt-canary" in str(error)


def test_errors_that_go_in_circles_end(stream: io.StringIO) -> None:
    logs.configure("json", stream=stream)
    first, second = ValueError(), TypeError()
    first.__cause__, second.__cause__ = second, first
    LOGGER.error("odd", exc_info=first)
    assert str(lines(stream)[0]["error"]).split("\n") == ["ValueError", "TypeError"]


def test_configuring_again_replaces_the_last_choice(stream: io.StringIO) -> None:
    logs.configure("json", stream=stream)
    logs.configure("text", "WARNING", stream=stream)
    LOGGER.info("not wanted")
    LOGGER.warning("wanted")
    assert stream.getvalue().count("\n") == 1
    assert stream.getvalue().startswith("WARNING ")


def test_the_environment_decides_in_processes_of_the_server(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    handlers = list(LOGGER.handlers)
    monkeypatch.delenv(logs.FORMAT_VARIABLE, raising=False)
    logs.configure_from_environment()
    assert LOGGER.handlers == handlers  # a program that imports us keeps its own logging
    monkeypatch.setenv(logs.FORMAT_VARIABLE, "json")
    monkeypatch.setenv(logs.LEVEL_VARIABLE, "debug")
    logs.configure_from_environment()
    LOGGER.debug("hello")
    assert json.loads(capsys.readouterr().err)["message"] == "hello"


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(ValueError, match="xml"):
        logs.configure("xml")  # type: ignore[arg-type]
