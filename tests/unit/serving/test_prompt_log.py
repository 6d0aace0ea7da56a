"""The prompt log's files: who may read them, when they are exchanged, what is refused, what a full disk does."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY

from sae_runtime.errors import InputError
from sae_runtime.serving.prompt_files import PromptFiles, PromptLogOptions, check_prompt_log
from sae_runtime.serving.prompt_log import PromptLog, redacted

Options = Callable[..., PromptLogOptions]
DAY = 86_400.0


def line(number: int, at: float = 0.0) -> bytes:
    return json.dumps({"time": datetime.fromtimestamp(at, UTC).isoformat(), "id": f"{number:06}"}).encode() + b"\n"


def numbers(path: Path) -> list[int]:
    return [int(json.loads(one)["id"]) for one in path.read_text().splitlines()]


def logged(outcome: str) -> float:
    return REGISTRY.get_sample_value("sensecheck_prompt_log_records_total", {"outcome": outcome}) or 0.0


class Clock:
    def __init__(self) -> None:
        self.now = datetime(2026, 11, 24, tzinfo=UTC).timestamp()

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def open_files(log_options: Options, clock: Clock) -> Iterator[Callable[..., PromptFiles]]:
    with contextlib.ExitStack() as stack:

        def make(**options: Any) -> PromptFiles:
            return stack.enter_context(contextlib.closing(PromptFiles(log_options(**options), now=clock)))

        yield make


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "prompts.jsonl"


def test_only_the_owner_can_read_the_files(open_files: Any, path: Path) -> None:
    before = os.umask(0)
    try:
        files = open_files(max_bytes=100)
        for number in range(4):
            files.append(line(number))
    finally:
        os.umask(before)
    assert {oct(found.stat().st_mode & 0o777) for found in path.parent.iterdir()} == {"0o600"}


def test_a_file_that_others_could_read_is_closed_to_them(open_files: Any, path: Path) -> None:
    path.touch(0o644)
    open_files()
    assert path.stat().st_mode & 0o777 == 0o600


def test_files_are_exchanged_by_size_and_the_oldest_goes(open_files: Any, path: Path) -> None:
    size = len(line(0))
    files = open_files(max_bytes=3 * size, files=3)
    for number in range(11):
        files.append(line(number))
    assert sorted(found.name for found in path.parent.iterdir()) == [path.name, f"{path.name}.1", f"{path.name}.2"]
    assert numbers(path) == [9, 10]
    assert numbers(path.with_name(path.name + ".1")) == [6, 7, 8]
    assert numbers(path.with_name(path.name + ".2")) == [3, 4, 5]
    assert all(found.stat().st_size <= 3 * size for found in path.parent.iterdir())


def test_a_single_file_begins_anew(open_files: Any, path: Path) -> None:
    files = open_files(max_bytes=2 * len(line(0)), files=1)
    for number in range(5):
        files.append(line(number))
    assert [found.name for found in path.parent.iterdir()] == [path.name]
    assert numbers(path) == [4]


def test_a_record_longer_than_a_file_is_kept_whole(open_files: Any, path: Path) -> None:
    files = open_files(max_bytes=10)
    files.append(line(1))
    files.append(line(2))
    assert numbers(path) == [2]
    assert numbers(path.with_name(path.name + ".1")) == [1]


def test_no_record_outlives_its_age_by_more_than_a_files_span(open_files: Any, path: Path, clock: Clock) -> None:
    files = open_files(files=4, days=8.0)  # a file covers two days
    start = clock.now
    for hour in range(0, 24 * 30, 6):
        clock.now = start + hour * 3600.0
        files.append(line(hour, clock.now))
        for found in path.parent.iterdir():  # what the file system would say, had the time really passed
            newest = datetime.fromisoformat(json.loads(found.read_text().splitlines()[-1])["time"]).timestamp()
            os.utime(found, (newest, newest))
        oldest = min(hour_of for found in path.parent.iterdir() for hour_of in numbers(found))
        assert hour - oldest <= 24 * (8 + 2)
    assert hour - oldest > 24 * 6  # and it is kept as long as was asked for, but for a file's span


def test_old_files_go_although_nothing_is_asked(open_files: Any, path: Path, clock: Clock) -> None:
    files = open_files(days=2.0, files=2)
    files.append(line(1, clock.now))
    os.utime(path, (clock.now, clock.now))
    clock.now += 1.5 * DAY
    files.look_after()
    assert path.read_bytes() == b""  # it became FILE.1 when it had covered its time
    clock.now += 1.0 * DAY
    files.look_after()
    assert [found.name for found in path.parent.iterdir()] == [path.name]


def test_a_start_that_keeps_fewer_files_deletes_those_beyond(open_files: Any, path: Path, clock: Clock) -> None:
    for number in (1, 2, 3, 12):
        older = path.with_name(f"{path.name}.{number}")
        older.write_bytes(line(number, clock.now))
        os.utime(older, (clock.now, clock.now))
    others = [path.with_name(name) for name in (f"{path.name}.bak", f"{path.name}.03", f"{path.name}.7.gz", "7")]
    for other in others:
        other.write_text("not ours")
    open_files(files=3).append(line(9, clock.now))
    kept = {path.name, f"{path.name}.1", f"{path.name}.2", *(other.name for other in others)}
    assert {found.name for found in path.parent.iterdir()} == kept


def test_a_file_of_an_earlier_start_keeps_its_age(open_files: Any, path: Path, clock: Clock) -> None:
    path.write_bytes(line(1, clock.now - 20 * DAY) + line(2, clock.now))
    files = open_files(days=30.0, files=10)
    files.append(line(3, clock.now))
    assert numbers(path) == [3]
    assert numbers(path.with_name(path.name + ".1")) == [1, 2]


@pytest.mark.parametrize("content", [b"no JSON\n", b'{"time": 7}\n', b"[]\n", b'{"time": "2026-11-24T00:00:00Z"'])
def test_a_file_with_other_things_in_it_is_continued(open_files: Any, path: Path, clock: Clock, content: bytes) -> None:
    path.write_bytes(content)
    os.utime(path, (clock.now, clock.now))
    open_files().append(line(3, clock.now))
    assert path.read_bytes() == content + line(3, clock.now)


def test_a_clock_that_goes_back_loses_nothing(open_files: Any, path: Path, clock: Clock) -> None:
    files = open_files()
    files.append(line(1, clock.now))
    clock.now -= 400 * DAY
    files.append(line(2, clock.now))
    assert numbers(path) == [1, 2]


def test_a_file_that_somebody_moved_is_made_anew(open_files: Any, path: Path) -> None:
    files = open_files()
    files.append(line(1))
    path.rename(path.with_name("moved"))
    files.append(line(2))
    path.unlink()
    files.append(line(3))
    assert numbers(path) == [3]
    assert numbers(path.with_name("moved")) == [1]
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_symbolic_link_is_not_followed(open_files: Any, path: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    path.symlink_to(victim)
    with pytest.raises(InputError, match="symbolic link"):
        open_files()
    assert victim.read_text() == "untouched"


def test_a_link_put_in_the_way_later_is_not_followed(open_files: Any, path: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    files = open_files(max_bytes=2 * len(line(0)), files=3)
    path.with_name(path.name + ".1").symlink_to(victim)
    path.with_name(path.name + ".2").symlink_to(victim)
    files.append(line(1))
    for number in range(2, 8):
        files.append(line(number))
    path.unlink()
    path.symlink_to(victim)
    with pytest.raises(OSError, match="symbolic"):
        files.append(line(9))
    assert victim.read_text() == "untouched"
    path.unlink()
    files.append(line(10))
    assert numbers(path) == [10]


def test_a_file_with_a_second_name_is_refused(open_files: Any, path: Path, tmp_path: Path) -> None:
    path.touch()
    path.with_name("second").hardlink_to(path)
    with pytest.raises(InputError, match="second name"):
        open_files()


def test_what_is_no_file_is_refused_at_once(open_files: Any, path: Path) -> None:
    os.mkfifo(path)  # opening one to write waits for a reader
    with pytest.raises(InputError):
        open_files()
    path.unlink()
    path.mkdir()
    with pytest.raises(InputError):
        open_files()
    with pytest.raises(InputError):
        open_files(path="/dev/null")


def test_two_servers_cannot_write_one_file(open_files: Any, log_options: Options) -> None:
    open_files()
    with pytest.raises(InputError, match="another server"):
        check_prompt_log(log_options(), reads=True)


def test_a_log_that_would_stay_empty_is_refused(log_options: Options, path: Path) -> None:
    with pytest.raises(InputError, match="No prompt will be read"):
        check_prompt_log(log_options(), reads=False)
    assert not path.exists()
    check_prompt_log(log_options(), reads=True)
    check_prompt_log(log_options(), reads=True)  # it gives the file free


def test_a_missing_folder_is_refused(log_options: Options, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="folder"):
        check_prompt_log(log_options(path=str(tmp_path / "no" / "file")), reads=True)


@pytest.mark.parametrize("wrong", [{"max_bytes": 0}, {"files": 0}, {"days": 0.0}, {"days": float("nan")}], ids=repr)
def test_limits_must_be_positive(log_options: Options, wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="positive"):
        log_options(**wrong)


def test_options_survive_the_way_to_the_server_process(log_options: Options) -> None:
    options = log_options(max_bytes=7, files=2, days=0.5)
    assert PromptLogOptions.from_json(options.to_json()) == options


# The log itself.


@pytest.fixture
def open_log(log_options: Options) -> Iterator[Callable[..., PromptLog]]:
    with contextlib.ExitStack() as stack:
        yield lambda **options: stack.enter_context(contextlib.closing(PromptLog(log_options(**options))))


def test_records_are_written_redacted_and_in_order(open_log: Any, path: Path) -> None:
    before = logged("written")
    log = open_log()
    text = "Mail ann@example.org, call +44 20 7946 0958, password: hunter2 — naïve\n🏞"
    for number in range(50):
        log.put({"id": "0123456789abcdef", "number": number, "messages": [{"role": "user", "content": text}]})
    log.close()
    records = [json.loads(one) for one in path.read_text().splitlines()]
    assert [record["number"] for record in records] == list(range(50))
    assert records[0]["messages"][0]["content"] == "Mail [email], call [number], password: [key] — naïve\n🏞"
    assert records[0]["id"] == "0123456789abcdef"
    assert logged("written") - before == 50


def test_a_lone_surrogate_breaks_nothing(open_log: Any, path: Path) -> None:
    log = open_log()
    log.put({"messages": ["bank \ud83c"]})
    log.close()
    assert json.loads(path.read_text()) == {"messages": ["bank \ud83c"]}


def test_what_cannot_be_written_is_counted_and_said_once(
    open_log: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, path: Path
) -> None:
    log, real = open_log(), os.write
    failing = threading.Event()
    failing.set()

    def write(opened: int, data: bytes) -> int:
        return real(opened, data[: len(data) // 2] if failing.is_set() and b"number" in data else data)

    monkeypatch.setattr("sae_runtime.serving.prompt_files.os.write", write)
    failed, written = logged("failed"), logged("written")
    with caplog.at_level(logging.ERROR, logger="sensecheck"):
        for number in range(20):
            log.put({"number": number, "text": "prompt-canary"})
        while logged("failed") - failed < 20:
            failing.wait(0.01)
        failing.clear()
        log.put({"number": 20})
        log.close()
    assert [record.getMessage() for record in caplog.records] == ["prompts cannot be logged: No space left on device"]
    assert logged("written") - written == 1
    assert [json.loads(one) for one in path.read_text().splitlines()] == [{"number": 20}]  # no half line is left


def test_a_disk_that_really_is_full_leaves_whole_lines_only(log_options: Options, path: Path) -> None:
    """The kernel's own limit on the size of files: the last write before it is a short one."""
    code = f"""
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
from sae_runtime.serving.prompt_files import PromptFiles, PromptLogOptions
files = PromptFiles(PromptLogOptions.from_json({log_options().to_json()!r}))
refused = 0
for number in range(100):
    try:
        files.append(b'{{"n": "' + b"x" * 90 + b'"}}\\n')
    except OSError:
        refused += 1
print(refused)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
    lines = path.read_bytes().splitlines(keepends=True)
    assert len(lines) == 2000 // len(lines[0])
    assert int(run.stdout) == 100 - len(lines)
    assert all(json.loads(one) and one.endswith(b"\n") for one in lines)


def test_a_disk_that_is_too_slow_costs_records_not_memory_or_time(
    open_log: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, go_on = open_log(), threading.Event()
    monkeypatch.setattr(PromptFiles, "append", lambda self, data: go_on.wait(30))
    before = logged("dropped")
    for number in range(1500):
        log.put({"number": number})
    assert 490 <= logged("dropped") - before <= 500
    go_on.set()
    log.close()


def test_redaction_reaches_every_string_and_nothing_else() -> None:
    record = {"time": "2026-11-24T00:00:00.000+00:00", "id": "1234567890", "trace": None, "p": 12345678.5, "ok": True,
              "nested": [{"a": ("12345678", None)}, "12345678"]}  # fmt: skip
    assert redacted(record) == {**record, "nested": [{"a": ["[number]", None]}, "[number]"]}
