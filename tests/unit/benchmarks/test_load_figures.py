"""Percentiles, shares, ratios and plots of a load test, from made-up cells with known figures."""

from __future__ import annotations

import math
import re

import pytest

from benchmarks.load import Record, Settings
from benchmarks.table import show
from benchmarks.traffic import figures
from benchmarks.traffic.figures import Cell, Memory, answers, memory, percentile, plot, pools, ratios
from benchmarks.traffic.histogram import between, inspections, quantile, together
from benchmarks.traffic.users import Sample

EXPOSITION = """# TYPE sensecheck_inspection_duration_seconds histogram
sensecheck_inspection_duration_seconds_bucket{le="0.1",route="one_call"} 50
sensecheck_inspection_duration_seconds_bucket{le="0.2",route="one_call"} 90
sensecheck_inspection_duration_seconds_bucket{le="+Inf",route="one_call"} 100
sensecheck_inspection_duration_seconds_bucket{le="0.1",route="inspect"} 7
sensecheck_inspection_duration_seconds_bucket{le="+Inf",route="inspect"} 7
sensecheck_inspection_duration_seconds_count{route="one_call"} 100
# TYPE other histogram
other_bucket{le="+Inf",route="one_call"} 3
"""


def cell(arm="plain", users=8, round=0, firsts=(1.0,), seconds=10.0, **options) -> Cell:
    samples = [Sample(first=first, total=first + 1, tokens=32) for first in firsts]
    server = "plain" if arm == "plain" else "ours"
    given = {"samples": samples, "memory": [], "cut": False, "server": server, **options}
    return Cell(arm=arm, users=users, round=round, seconds=seconds, **given)


def hundred(scale=1.0):
    return [scale * n / 1000 for n in range(1, 101)]  # 1 to 100 ms


def test_percentiles_are_between_neighbours():
    assert percentile(list(range(1, 101)), 50) == 50.5
    assert percentile(list(range(1, 101)), 99) == pytest.approx(99.01)
    assert percentile([7.0], 95) == 7.0
    assert percentile([], 95) is None


def test_an_arm_is_described_over_all_its_rounds():
    halves = [cell(firsts=hundred()[:50]), cell(round=1, firsts=hundred()[50:], seconds=30.0)]
    (row,) = answers(halves)
    assert row == {
        "users": 8, "arm": "plain", "requests": 100, "errors": "0", "bypassed": "–", "flagged": "–",
        "inspection ms p50/p95/p99": "–", "first token ms p50/p95/p99": "50 / 95 / 99", "tokens/s": 80.0,
    }  # fmt: skip


def test_errors_and_bypasses_are_shares_of_all_requests_by_reason():
    fine = [Sample(first=0.1, total=1, tokens=32, inspection=0.05, flagged=n < 3) for n in range(6)]
    unread = [
        Sample(first=0.1, total=1, tokens=32, inspection=5.0, bypass=b) for b in ("timeout", "timeout", "circuit open")
    ]
    broken = [Sample(total=1, error="ReadError", inspection=0.05)]
    (row,) = answers([cell("two calls", samples=fine + unread + broken)])
    assert row["requests"] == 10
    assert row["errors"] == "10.0% (ReadError 10.0%)"
    assert row["bypassed"] == "30.0% (timeout 20.0%, circuit open 10.0%)"
    assert row["flagged"] == "30%"
    assert row["inspection ms p50/p95/p99"] == "50 / 5000 / 5000"
    assert row["first token ms p50/p95/p99"] == "100 / 100 / 100"


def test_the_first_token_of_an_answer_that_broke_off_does_not_count():
    samples = [Sample(first=0.1, total=1, tokens=32), Sample(first=9.0, total=9, error="the stream broke off")]
    assert pools([cell(samples=samples)])[8, "plain"].firsts() == [0.1]


def test_ratios_are_to_plain_with_as_many_users_and_their_range_is_over_rounds():
    cells = [
        cell(firsts=hundred()), cell(firsts=hundred(), round=1),
        cell("one call", firsts=hundred(1.1)), cell("one call", firsts=hundred(1.3), round=1, seconds=20.0),
        cell(users=1, firsts=hundred(5)), cell("one call", users=32, firsts=hundred()),
    ]  # fmt: skip
    (row,) = ratios(cells)  # with one user and with 32 there is nothing to compare
    assert (row["users"], row["arm"]) == (8, "one call")
    assert re.fullmatch(r"1\.\d\d \(1\.10 to 1\.30\)", row["first token p50"])
    assert row["tokens/s"] == "0.67 (0.50 to 1.00)"


def test_a_ratio_without_whole_answers_is_a_dash():
    dead = [Sample(total=1, error="ReadError")]
    (row,) = ratios([cell(firsts=hundred()), cell("two calls", samples=dead)])
    assert row["first token p95"] == "–"
    assert row["tokens/s"] == "0.00"


def test_the_baseline_comes_first_and_users_in_order():
    keys = pools([cell("two calls", 128), cell("one call", 8), cell("plain", 128), cell("plain", 8)])
    assert list(keys) == [(8, "plain"), (8, "one call"), (128, "plain"), (128, "two calls")]


def test_memory_is_the_sum_over_roles_least_and_largest():
    at = [Memory(at=n, roles={"API server": n * figures.MIB, "VLLM::Worker": 100 * figures.MIB}) for n in (1, 7, 3)]
    assert memory([cell("one call", memory=at), cell("two calls", memory=at[:1]), cell()]) == [
        {"server": "ours", "users": 8, "least MiB": 101, "largest MiB": 107}
    ]


def test_the_servers_histogram_of_a_route_is_read_and_interpolated():
    buckets = inspections(EXPOSITION, "one_call")
    assert buckets == {0.1: 50, 0.2: 90, math.inf: 100}
    assert quantile(buckets, 0.5) == pytest.approx(0.1)
    assert quantile(buckets, 0.7) == pytest.approx(0.15)
    assert quantile(buckets, 0.99) == pytest.approx(0.2)  # in the last bucket, which has no end
    assert inspections("# nothing\n", "one_call") == {}
    assert quantile({}, 0.5) is None
    assert quantile({0.1: 0.0, math.inf: 0.0}, 0.5) is None


def test_histograms_are_subtracted_and_added():
    after = {0.1: 60.0, 0.2: 95.0, math.inf: 110.0}
    added = between(inspections(EXPOSITION, "one_call"), after)
    assert added == {0.1: 10, 0.2: 5, math.inf: 10}
    assert between({}, after) == after
    assert together([added, after, {}]) == {0.1: 70, 0.2: 100, math.inf: 120}


def test_one_call_inspections_are_the_servers_and_marked():
    (row,) = answers([cell("one call", inspections=inspections(EXPOSITION, "one_call"))])
    assert row["inspection ms p50/p95/p99"] == "~100 / ~200 / ~200"


def test_the_tables_are_markdown(capsys):
    show(answers([cell(firsts=hundred()), cell("one call", firsts=hundred(2))]), as_json=False)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert len({line.count("|") for line in lines}) == 1


def test_the_plot_shows_every_arm_and_is_the_same_again(tmp_path):
    at = [Memory(at=60 * n, roles={"API server": n * figures.MIB}) for n in range(3)]
    cells = [cell(arm, users, firsts=hundred(users), memory=at)
             for users in (1, 8) for arm in ("plain", "one call", "two calls")]  # fmt: skip
    cells.append(cell("two calls", 32, samples=[Sample(error="ReadError")]))
    plot(cells, tmp_path / "new" / "load.svg")
    svg = (tmp_path / "new" / "load.svg").read_text("utf-8")
    for text in ("plain, p50", "one call, p95", "two calls, p50", "users at once", "ours"):
        assert text in svg
    plot(cells, tmp_path / "again.svg")
    assert (tmp_path / "again.svg").read_text("utf-8") == svg


def test_a_record_survives_its_file(tmp_path):
    settings = Settings(model="m", tokens=32, compiled=True, seed=0)
    record = Record(settings=settings, began=1.5)
    record.cells.append(cell("one call", inspections=inspections(EXPOSITION, "one_call"), firsts=hundred()))
    record.cells.append(cell(samples=[Sample(error="ReadError")]))
    record.write(tmp_path / "new" / "load.json")
    assert Record.open(tmp_path / "new" / "load.json", settings) == record
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["load.json"]
