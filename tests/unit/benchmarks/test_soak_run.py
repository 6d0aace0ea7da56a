"""A soak test against a scripted server: every kind of request, every series; and the judgement of made-up records."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest
import typer
from scripted_server import Script, scripted_server

from benchmarks import soak
from benchmarks.soak import MEASURES, Look, Record, growths, main, report
from benchmarks.traffic.figures import MIB
from benchmarks.traffic.processes import Held, contents, look
from benchmarks.traffic.steady import Asked, Pace, by_kind

KINDS = {"one call", "two calls", "page", "plain", "feature", "left while answered", "left while read"}


def record_of(*, leak: float = 0.0, waiting: float = 0.0, unanswered: int = 0) -> Record:
    """Half an hour: memory that fills up in ten minutes and then grows by ``leak`` MiB an hour."""
    draw, looks = np.random.default_rng(0), []
    for at in np.arange(0, 1800, 10.0):
        rss = 1500 + min(at, 500) + leak * at / 3600 + draw.normal(0, 1)
        held = Held(rss=int(rss * MIB), descriptors=60 + int(draw.integers(3)), threads=40, sockets=20)
        looks.append(
            Look(at=at, roles={"API server": held, "VLLM::Worker": held}, shared=(3, 3 * MIB), files=(2, 100),
                 waiting=int(waiting * at / 60))
        )  # fmt: skip
    asked = [Asked("plain", float(n), 0.5, "ReadError" if n < unanswered else None) for n in range(200)]
    return Record(model="m", rate=1.0, warm_up_rate=1.0, tokens=32, seconds=1800, looks=looks, asked=asked)


@pytest.fixture
def served(request, monkeypatch) -> Script:
    """A scripted server takes the place of the model's, and is looked at often; its script is the test's parameter."""
    script = getattr(request, "param", Script())

    @contextmanager
    def start(model, options) -> Iterator[object]:
        assert Path(options.environment["TMPDIR"]).is_dir()
        with scripted_server(script) as server:
            (Path(options.environment["TMPDIR"]) / "left-behind").write_bytes(b"x" * 10)
            yield server

    monkeypatch.setattr(soak.ModelServer, "start", start)
    monkeypatch.setattr(soak, "_EVERY", 0.3)
    monkeypatch.setattr(soak, "_catalogued", lambda model: [4, 7])
    return script


def run(out: Path, seconds: float = 4.0, rate: float = 6.0) -> Record:
    with pytest.raises(typer.Exit):  # too short for a verdict
        main("m", minutes=seconds / 60, rate=rate, tokens=4, compiled=False, out=out, svg=None, only_report=False)
    return Record.model_validate_json(out.read_text("utf-8"))


def test_every_kind_is_sent_and_answered_and_every_series_is_kept(served, tmp_path, capsys):
    level = logging.getLogger("sensecheck").level
    record = run(tmp_path / "soak.json")
    assert logging.getLogger("sensecheck").level == level  # it logs no bypass meanwhile
    assert {one.kind for one in record.asked} == KINDS
    assert [one.error for one in record.asked] == [None] * len(record.asked)
    assert 10 <= len(record.asked) <= 25
    assert len(record.looks) >= 2
    for look_ in record.looks:
        assert look_.roles["API server"].rss > 2**20
        assert look_.roles["API server"].descriptors > 3
        assert look_.files == (1, 10)
        assert look_.waiting == 0
    assert "No verdict" in capsys.readouterr().out


@pytest.mark.parametrize("served", [Script(refuse=2)], indirect=True)
def test_what_is_refused_is_unanswered(served, tmp_path, capsys):
    record = run(tmp_path / "soak.json")
    refused = Counter(one.kind for one in record.asked if one.error == "status 500")
    assert refused
    assert set(refused) <= {"one call", "two calls", "plain", "left while answered"}


@pytest.mark.parametrize("served", [Script(cut=True)], indirect=True)
def test_whoever_left_does_not_miss_the_end(served, tmp_path):
    record = run(tmp_path / "soak.json")
    errors = {one.kind: one.error for one in record.asked}
    assert errors["one call"] == errors["plain"] == "the stream broke off"
    assert errors["left while answered"] is None


def test_a_server_that_dies_ends_the_soak(served, tmp_path, monkeypatch):
    real, counted = soak.look, []

    def dying(pid):
        counted.append(pid)
        if len(counted) == 3:
            os.kill(pid, 9)
            psutil.Process(pid).wait()
        return real(pid)

    monkeypatch.setattr(soak, "look", dying)
    with pytest.raises(psutil.NoSuchProcess):
        main(
            "m", minutes=5, rate=6.0, tokens=4, compiled=False, out=tmp_path / "soak.json", svg=None, only_report=False
        )
    assert len(Record.model_validate_json((tmp_path / "soak.json").read_text("utf-8")).looks) == 2


def test_a_server_that_holds_no_more_passes(capsys, tmp_path):
    assert report(record_of(), tmp_path / "new" / "soak.svg")
    out = capsys.readouterr().out
    assert "200 requests in 30 minutes, 0 unanswered. Too much growth: none. Undecided: none." in out
    assert out.count("| pass |") == len(MEASURES)
    svg = (tmp_path / "new" / "soak.svg").read_text("utf-8")
    assert all(name in svg for name in (*MEASURES, "VLLM::Worker"))


@pytest.mark.parametrize(
    ("flaw", "words"),
    [
        ({"leak": 100.0}, "Too much growth: memory, MiB."),
        ({"waiting": 1.0}, "Too much growth: readings waited for."),
        ({"unanswered": 1}, "1 unanswered. Too much growth: none."),
    ],
)
def test_a_server_that_leaks_or_leaves_a_request_unanswered_fails(flaw, words, tmp_path, capsys):
    record_of(**flaw).write(tmp_path / "soak.json")
    with pytest.raises(typer.Exit):
        main(out=tmp_path / "soak.json", svg=None, only_report=True)
    assert words in capsys.readouterr().out


def test_the_filling_of_caches_is_no_growth():
    found = growths(record_of())
    assert found["memory, MiB"].begin == pytest.approx(2 * 2000, abs=10)
    assert abs(found["memory, MiB"].slope) < 15


def test_requests_come_faster_in_the_warm_up():
    pace = Pace(rate=1.0, warm_up=2.0, warm_up_rate=3.0)
    assert [round(pace.due(number), 2) for number in range(9)] == [0, 0.33, 0.67, 1, 1.33, 1.67, 2, 3, 4]
    assert [Pace(rate=2.0, warm_up=0.0, warm_up_rate=1.0).due(number) for number in range(3)] == [0, 0.5, 1]


def test_requests_are_described_by_kind():
    asked = [Asked("plain", 0, 0.1), Asked("plain", 1, 0.3), Asked("plain", 2, 0.2, "status 500"),
             Asked("two calls", 3, 1.0, None, "timeout")]  # fmt: skip
    assert by_kind(asked) == [
        {"kind": "two calls", "requests": 1, "unanswered": 0, "errors": "–", "bypassed": "timeout: 1", "median ms": 1000,
         "longest ms": 1000},
        {"kind": "plain", "requests": 3, "unanswered": 1, "errors": "status 500: 1", "bypassed": "–", "median ms": 200,
         "longest ms": 300},
    ]  # fmt: skip


def test_descendants_are_looked_at_by_role_and_what_they_open_is_seen(tmp_path):
    code = (
        "import socket, subprocess, sys, threading, time; child = subprocess.Popen([sys.executable, '-c', 'input()'],"
        " stdin=subprocess.PIPE); s = socket.socket(); threading.Thread(target=time.sleep, args=(60,), daemon=True).start();"
        " files = [open(__import__('os').devnull) for _ in range(5)]; print('ready', flush=True); input()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        tree = look(process.pid)
        process.communicate(b"\n")
    own = tree["API server"]
    assert own.threads == 2
    assert own.descriptors >= 3 + 5 + 1
    assert sum(held.rss for held in tree.values()) > own.rss
    assert len(tree) == 2
    with pytest.raises(psutil.NoSuchProcess):
        look(process.pid)


def test_contents_are_counted_at_any_depth_and_may_vanish(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").write_bytes(b"x" * 7)
    known = tmp_path / "known"
    known.write_bytes(b"x" * 100)
    entries, size = contents(tmp_path, without=frozenset({known}))
    assert entries == 2
    assert size == 7 + (tmp_path / "a").lstat().st_size
    with socket.socket(socket.AF_UNIX) as unix, tempfile.TemporaryDirectory() as short:
        unix.bind(f"{short}/s")
        assert contents(Path(short)) == (1, 0)
