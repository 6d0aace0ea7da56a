"""A load test against scripted servers: who is asked what, what is written down, how an interrupted run goes on."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from scripted_server import MISREAD, Script, ScriptedServer, scripted_server

from benchmarks import load
from benchmarks.load import Record, Settings, main
from benchmarks.traffic.users import Refused
from sae_runtime.errors import InputError

SETTINGS = Settings(model="scripted", tokens=4, compiled=False, seed=3)
ARMS = ("plain", "one call", "two calls")


@pytest.fixture
def running(request, monkeypatch) -> Iterator[dict[str, list]]:
    """What the servers that :mod:`benchmarks.load` starts were asked, by name; their scripts are the test's parameter."""
    scripts = getattr(request, "param", {})
    started: dict[str, ScriptedServer] = {}
    seen: dict[str, list] = {}

    def start_servers(model, servers, names, stack: ExitStack, *, compiled, extra) -> None:
        for name in sorted(names):
            if name not in started:
                started[name] = end.enter_context(scripted_server(scripts.get(name)))
            servers.add(name, started[name])
        stack.callback(lambda: seen.update({name: server.seen() for name, server in started.items()}))
        stack.callback(servers.wake_all)

    monkeypatch.setattr(load, "start_servers", start_servers)
    monkeypatch.setattr(load, "_LEAST_CHATS", 2)
    with ExitStack() as end:
        yield seen


def run(out: Path, **options) -> Record:
    given = {"users": [1, 3], "rounds": 1, "minutes": 10.0, "crowd_seconds": 60.0, "svg": None, "only_report": False}
    main(SETTINGS.model, tokens=SETTINGS.tokens, compiled=False, out=out, seed=SETTINGS.seed, **{**given, **options})
    return Record.open(out, SETTINGS)


def texts(body) -> list[str]:
    return [message["content"] for message in body["messages"]]


def test_every_arm_answers_the_same_conversations(running, tmp_path, capsys):
    record = run(tmp_path / "load.json")
    assert Counter((cell.users, cell.arm) for cell in record.cells) == {(n, arm): 1 for n in (1, 3) for arm in ARMS}
    sizes = {(cell.users, len(cell.samples)) for cell in record.cells}
    assert len(sizes) == 2  # one number of requests per number of users
    samples = [sample for cell in record.cells for sample in cell.samples]
    assert not [sample for sample in samples if sample.error or sample.bypass]
    assert all(0 < sample.first <= sample.total and sample.tokens == 4 for sample in samples)
    assert all(
        (sample.inspection is not None) == (cell.arm == "two calls") for cell in record.cells for sample in cell.samples
    )
    assert all(cell.memory and cell.memory[0].roles["API server"] > 2**20 for cell in record.cells)
    out = capsys.readouterr().out
    assert out.count("| plain |") == 2 + 2  # arms by users, and its server's memory by users
    assert "still to come" not in out


def test_arms_ask_as_they_should(running, tmp_path):
    record = run(tmp_path / "load.json", users=[3])
    kinds = Counter(
        "inspect" if "tokens" in body else "one call" if body.get("sensecheck") else "answer"
        for body in running["ours"]
    )
    (one, two, plain) = (
        len(next(c for c in record.cells if c.arm == arm).samples) for arm in ("one call", "two calls", "plain")
    )
    assert kinds == {"one call": one, "inspect": two, "answer": two + 1 + 1}  # and a warm-up before each crowd
    assert len(running["plain"]) == plain + 1
    bodies = [body for body in running["ours"] + running["plain"] if body["messages"][0]["role"] == "system"]
    beginnings = {texts(body)[0].rsplit("-", 3)[0] for body in bodies}
    assert beginnings == {f"Conversation {arm}" for arm in ARMS}  # no arm finds another's prefix in the cache


def test_later_turns_hold_what_was_said(running, tmp_path):
    run(tmp_path / "load.json", users=[1])
    bodies = [body for body in running["plain"] if len(body["messages"]) > 3]
    assert bodies
    for body in bodies:
        roles = [message["role"] for message in body["messages"]]
        assert roles == ["system", *["user", "assistant"] * (len(roles) // 2 - 1), "user"]
        assert body["messages"][2]["content"] == "A short answer."


def test_flags_are_the_servers(running, tmp_path):
    record = run(tmp_path / "load.json", users=[3])
    asked = [body for body in running["ours"] if body.get("sensecheck")]
    flagged = sum(MISREAD in texts(body)[-1] for body in asked)
    (one,) = [cell for cell in record.cells if cell.arm == "one call"]
    assert sum(sample.flagged for sample in one.samples) == flagged
    assert one.inspections[0.1] == len(one.samples)


@pytest.mark.parametrize("running", [{"ours": Script(refuse=3, unread=2)}], indirect=True)
def test_refusals_and_bypasses_are_counted_by_reason(running, tmp_path, capsys):
    record = run(tmp_path / "load.json", users=[3])
    by_arm = {cell.arm: cell for cell in record.cells}
    assert {sample.error for sample in by_arm["one call"].samples} == {None, "status 500"}
    assert {sample.bypass for sample in by_arm["one call"].samples} == {None, "timeout"}
    assert not any(sample.error for sample in by_arm["plain"].samples)
    refused = [sample for sample in by_arm["two calls"].samples if sample.error]
    assert refused
    assert all(sample.first is None and sample.tokens == 0 for sample in refused)
    assert "status 500" in capsys.readouterr().out


def test_bypasses_are_logged_again_afterwards(running, tmp_path):
    before = logging.getLogger("sensecheck").level
    run(tmp_path / "load.json", users=[1], minutes=0.0)
    assert logging.getLogger("sensecheck").level == before


@pytest.mark.parametrize("running", [{"plain": Script(cut=True)}], indirect=True)
def test_a_warm_up_that_breaks_off_ends_the_run(running, tmp_path):
    with pytest.raises(Refused, match="broke off"):
        run(tmp_path / "load.json", users=[1])


def test_an_interrupted_run_goes_on(running, tmp_path, monkeypatch):
    out, real = tmp_path / "load.json", load.Run.cell

    async def interrupted(self, number, users, arm, advance):
        if len(self.record.cells) == 2:
            raise KeyboardInterrupt
        return await real(self, number, users, arm, advance)

    monkeypatch.setattr(load.Run, "cell", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(out)
    first = Record.open(out, SETTINGS)
    assert len(first.cells) == 2
    monkeypatch.setattr(load.Run, "cell", real)
    whole = run(out)
    assert whole.cells[:2] == first.cells
    assert len(whole.cells) == 6
    asked = json.dumps(running)
    run(out)
    assert json.dumps(running) == asked  # nothing was left to measure
    assert len(run(out, rounds=2, users=[1]).cells) == 9  # another round joins in


def test_time_that_is_over_leaves_crowds_to_come(running, tmp_path, capsys):
    record = run(tmp_path / "load.json", minutes=0.0)
    assert record.cells == []
    assert "6 crowds are still to come" in capsys.readouterr().out


def test_a_crowd_whose_time_is_over_says_nothing_more(running, tmp_path, capsys):
    record = run(tmp_path / "load.json", users=[1], crowd_seconds=0.0)
    assert all(cell.cut and not cell.samples for cell in record.cells)
    assert "3 of 3 crowds were cut short" in capsys.readouterr().out


def test_other_settings_need_another_file(tmp_path):
    Record(settings=SETTINGS, began=0.0).write(tmp_path / "load.json")
    with pytest.raises(InputError, match="other settings"):
        Record.open(tmp_path / "load.json", SETTINGS.model_copy(update={"tokens": 8}))


def test_the_report_needs_no_server(running, tmp_path, capsys):
    run(tmp_path / "load.json", users=[1])
    before = capsys.readouterr().out
    run(tmp_path / "load.json", only_report=True, svg=tmp_path / "load.svg")
    assert capsys.readouterr().out == before
    assert (tmp_path / "load.svg").read_text("utf-8").startswith("<?xml")
