"""The laws of the simulated fleet: queueing theory's closed forms, nothing lost, more load is never better."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

from benchmarks.fleet.calibration import fit_engine
from benchmarks.fleet.clock import Clock
from benchmarks.fleet.costs import Costs, EngineCost, ReadingCost, pairs
from benchmarks.fleet.engine import BLOCK, Engine, PrefixCache, Sequence
from benchmarks.fleet.figures import Result, Scenario, row, run
from benchmarks.fleet.fleet import FleetOptions
from benchmarks.fleet.replica import ReplicaOptions
from benchmarks.fleet.traffic import Chat, Traffic, TurnSize, exponential, fixed
from benchmarks.fleet.turns import GRACE, MODES, ONE_CALL, PLAIN, TWO_CALLS, Client
from benchmarks.fleet.validation import Row, batch, read_rows

ENGINE = EngineCost(floor=0.03, free=8, token=5e-4, pair=5e-7, context=2e-6, sequence=5e-4, request=0.01)
READING = ReadingCost(plan_base=1e-3, encode_base=2e-3, encode_token=5e-6, judge_base=1e-3)
COSTS = Costs(ENGINE, READING)
TURN = TurnSize(asked=100, answered=20, note=0, pause=1.0)


def first_tokens(result: Result) -> list[float]:
    return [outcome.first for outcome in result.outcomes if outcome.first is not None]


# Queueing theory. A replica that computes one prompt at a time and answers with one token is a single server.

_MEAN = 1_000  # tokens of a prompt, one second of service
_SINGLE = Costs(EngineCost(0.0, 0.0, 1 / _MEAN, 0.0, 0.0, 0.0, 0.0), ReadingCost())


def queue(load: float, service: str, seed: int = 0) -> float:
    """Mean seconds in a single server's queue and service, over 20,000 prompts."""
    asked = fixed(_MEAN) if service == "deterministic" else exponential(_MEAN)
    traffic = Traffic(asked=asked, answered=fixed(1), turns=1.0, flagged=0.0)
    options = ReplicaOptions(budget=10**7, slots=1, capacity=0)
    result = run(Scenario(PLAIN, load, 20_000 / load, 500, replica=options, traffic=traffic), _SINGLE)
    return mean(first_tokens(result))


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_equal_prompts_wait_as_in_an_m_d_1_queue(load: float) -> None:
    assert queue(load, "deterministic") == pytest.approx(1 + load / (2 * (1 - load)), rel=0.05)


@pytest.fixture
def long_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let prompts be as long as they are drawn; the model's context would cut the exponential's tail."""
    monkeypatch.setattr("benchmarks.fleet.turns._LONGEST", 10**9)


@pytest.mark.usefixtures("long_prompts")
@pytest.mark.parametrize("load", [0.3, 0.6])
def test_exponential_prompts_wait_as_in_an_m_m_1_queue(load: float) -> None:
    assert queue(load, "exponential") == pytest.approx(1 / (1 - load), rel=0.07)


def test_turns_under_way_are_rate_times_time() -> None:
    """Little's law: mean number of turns under way = turns per second times mean seconds of a turn."""
    result = run(Scenario(PLAIN, 1.0, 2_000, 0, FleetOptions(replicas=2)), COSTS)
    spans = [(one.began, one.began + one.ended) for one in result.outcomes if one.ended is not None]
    moments = [20 * step for step in range(1, 100)]
    under_way = mean(sum(began <= moment < ended for began, ended in spans) for moment in moments)
    expected = len(spans) / 2_000 * mean(ended - began for began, ended in spans)
    assert under_way == pytest.approx(expected, rel=0.1)


# Conservation.

TROUBLES: dict[str, Any] = {
    "none": FleetOptions(replicas=3),
    "failures": FleetOptions(replicas=3, failures=60.0, restart=10.0),
    "update": FleetOptions(replicas=3, update=20.0, at_once=0.34, restart=10.0, drain=2.0),
    "all at once": FleetOptions(replicas=3, update=20.0, at_once=1.0, restart=10.0, drain=0.5, failures=60.0),
    "anywhere": FleetOptions(replicas=3, sticky=False),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("trouble", TROUBLES)
def test_every_turn_ends_once(mode: str, trouble: str) -> None:
    result = run(Scenario(mode, 2.0, 200, 0, TROUBLES[trouble]), COSTS)
    assert result.states.pop("open") == 0
    assert sum(result.states.values()) == result.asked == len(result.outcomes)
    assert {outcome.state for outcome in result.outcomes} == result.states.keys()
    for outcome in result.outcomes:
        assert outcome.ended is not None
        if outcome.state == "answered":
            assert outcome.first is not None
            assert 0 < outcome.first <= outcome.ended
            assert mode == PLAIN or (outcome.inspected is None) == (outcome.bypassed is not None)
    if trouble in ("none", "anywhere"):
        assert result.states == {"answered": result.asked}
    else:
        assert result.restarts >= 3


def test_a_fleet_that_is_gone_refuses_and_loses_nothing() -> None:
    gone = FleetOptions(replicas=2, update=10.0, at_once=1.0, restart=10_000.0, drain=0.0)
    result = run(Scenario(PLAIN, 2.0, 60, 0, gone), COSTS)
    assert result.states["refused"] > 0
    assert {one.state for one in result.outcomes if one.began > 11} == {"refused"}


@pytest.mark.parametrize("mode", MODES)
def test_the_same_seed_gives_the_same_run(mode: str) -> None:
    scenario = Scenario(mode, 2.0, 100, 0, TROUBLES["failures"], seed=5)
    assert run(scenario, COSTS).outcomes == run(scenario, COSTS).outcomes
    assert run(scenario, COSTS).outcomes != run(replace(scenario, seed=6), COSTS).outcomes


def test_a_rolling_update_restarts_every_replica_once_and_keeps_some_in_service() -> None:
    fleet = FleetOptions(replicas=8, update=30.0, at_once=0.25, restart=10.0)
    result = run(Scenario(PLAIN, 4.0, 300, 0, fleet), COSTS)
    assert result.restarts == 8
    assert result.states == {"open": 0, "answered": result.asked}


# Monotone in load, in cost, in trouble.


@pytest.mark.parametrize("mode", MODES)
def test_more_load_means_longer_waits(mode: str) -> None:
    waits = [
        mean(first_tokens(run(Scenario(mode, rate, 600, 60, ceiling=10**6, learnt=False), COSTS)))
        for rate in (0.2, 0.6, 1.2, 2.5)
    ]
    assert waits == sorted(waits)
    assert waits[-1] > 2 * waits[0]


def test_replicas_share_the_load() -> None:
    alone = run(Scenario(PLAIN, 1.2, 600, 60), COSTS)
    together = run(Scenario(PLAIN, 1.2 * 8, 600, 60, FleetOptions(replicas=8)), COSTS)
    assert mean(first_tokens(together)) < mean(first_tokens(alone))  # a pooled queue is shorter
    assert together.per_second == pytest.approx(8 * alone.per_second, rel=0.1)


def test_a_reading_that_costs_nothing_and_flags_nothing_changes_nothing_in_one_call() -> None:
    free = replace(COSTS, reading=ReadingCost())
    scenario = Scenario(PLAIN, 1.0, 300, 0, traffic=Traffic(flagged=0.0))
    plain, one = run(scenario, free), run(replace(scenario, mode=ONE_CALL), free)
    assert first_tokens(one) == first_tokens(plain)
    assert one.tokens_per_second == plain.tokens_per_second


def test_one_call_is_never_dearer_than_two() -> None:
    scenario = Scenario(PLAIN, 0.8, 600, 60, ceiling=10**6, learnt=False)
    plain, one, two = (mean(first_tokens(run(replace(scenario, mode=mode), COSTS))) for mode in MODES)
    assert plain < one < two


# Deadlines.


def test_no_time_means_no_reading_and_all_the_time_no_bypass() -> None:
    scenario = Scenario(TWO_CALLS, 0.8, 300, 0, learnt=False)
    never = run(replace(scenario, ceiling=0.0), COSTS)
    always = run(replace(scenario, ceiling=10**6), COSTS)
    assert row(never)["bypassed"] == 1.0
    assert row(never)["suspended"] > 0  # five failures in a row open the circuit
    assert row(always)["bypassed"] == 0.0
    assert {one.state for one in never.outcomes} == {"answered"}


def test_a_verdict_later_than_the_grace_is_not_waited_for() -> None:
    slow = replace(COSTS, reading=ReadingCost(judge_base=10 * GRACE))
    chat = Chat(0, 0.0, (TURN,))
    late = run(Scenario(ONE_CALL, 1.0, 60), slow, [chat]).outcomes[0]
    plain = run(Scenario(PLAIN, 1.0, 60), slow, [chat]).outcomes[0]
    assert late.bypassed == "timeout"
    assert late.inspected is None
    assert late.first == pytest.approx((plain.first or 0) + GRACE)


def test_a_client_learns_its_deadline_and_stops_asking_after_five_failures() -> None:
    client = Client(ceiling=5.0)
    assert client.deadline(100) == 5.0
    for seconds in (0.1, 0.4, 0.2):
        client.succeed(200, seconds)
    assert client.deadline(100) == pytest.approx(0.4 + GRACE)
    assert client.deadline(400) == pytest.approx(0.8 + GRACE)
    assert client.deadline(10**6) == 5.0
    for moment in range(5):
        assert client.suspended == 0.0
        client.fail(float(moment))
    assert client.suspended == 34.0
    client.fail(40.0)  # the first try after the pause decides
    assert client.suspended == 70.0
    client.succeed(100, 0.1)
    client.fail(80.0)
    assert client.suspended == 70.0


# The engine.


def engine(clock: Clock, **options: int) -> Engine:
    return Engine(clock, ENGINE, **{"budget": 2_048, "slots": 128, "capacity": 10**6, **options})


def test_a_single_answer_takes_its_prompt_and_then_one_step_for_each_token() -> None:
    clock, seen = Clock(), {}
    sequence = Sequence(0, 500, 0, 5, encode=0.1, first=lambda: seen.update(first=clock.now),
                        done=lambda: seen.update(done=clock.now))  # fmt: skip
    engine(clock).submit(sequence)
    clock.run(10)
    first = ENGINE.step(500, 1, pairs(0, 500), 0) + 0.1
    steps = sum(ENGINE.step(1, 1, 0, 500 + step) for step in range(4))
    assert seen == {"first": pytest.approx(first), "done": pytest.approx(first + steps)}


def test_long_prompts_are_computed_in_pieces_that_fit_a_step() -> None:
    clock, seen = Clock(), {}
    one = engine(clock, budget=300)
    one.submit(Sequence(0, 700, 0, 1, done=lambda: seen.update(done=clock.now)))
    clock.run(10)
    pieces = [(0, 300), (300, 600), (600, 700)]
    whole = sum(ENGINE.step(stop - start, 1, pairs(start, stop), 0) for start, stop in pieces)
    assert seen["done"] == pytest.approx(whole)


def test_what_comes_while_others_decode_begins_at_the_next_step() -> None:
    clock, seen = Clock(), {}
    one = engine(clock)
    one.submit(Sequence(0, 10, 0, 50, done=lambda: seen.update(a=clock.now)))
    clock.run(0.5)
    one.submit(Sequence(1, 10, 0, 1, done=lambda: seen.update(b=clock.now)))
    clock.run(10)
    step, both = ENGINE.step(1, 1, 0, 30), ENGINE.step(11, 2, pairs(0, 10), 30)
    assert 0.5 + both <= seen["b"] <= 0.5 + step + both + 1e-3
    assert seen["a"] == pytest.approx(49 * step + both, rel=0.02)


def test_a_prompt_that_was_asked_before_is_computed_from_its_last_block_on() -> None:
    cache = PrefixCache(1_000)
    cache.put(7, 96)
    assert cache.hit(Sequence(7, 200, 96, 1)) == 96
    assert cache.hit(Sequence(7, 200, 95, 1)) == 2 * BLOCK
    assert cache.hit(Sequence(7, 96, 96, 1)) == 2 * BLOCK  # never all of it
    assert cache.hit(Sequence(8, 200, 96, 1)) == 0
    cache.put(8, 950)
    assert cache.hit(Sequence(7, 200, 96, 1)) == 0


def test_a_stopped_answer_leaves_its_place() -> None:
    clock, seen = Clock(), []
    one = engine(clock, slots=1)
    endless = Sequence(0, 10, 0, 10**6)
    one.submit(endless)
    one.submit(Sequence(1, 10, 0, 1, done=lambda: seen.append(clock.now)))
    clock.run(1.0)
    assert seen == []
    one.abort(endless)
    clock.run(5.0)
    assert len(seen) == 1


def test_what_was_computed_of_a_stopped_prompt_is_found_again() -> None:
    clock, seen = Clock(), []
    one = engine(clock, budget=320)
    stopped = Sequence(0, 960, 0, 1)
    one.submit(stopped)
    clock.run(ENGINE.step(320, 1, pairs(0, 320), 0) + 1e-3)
    one.abort(stopped)  # in its second step of three
    clock.run(10)
    one.submit(Sequence(0, 960, 640, 1, done=lambda: seen.append(clock.now - 10)))
    clock.run(20)
    assert seen == [pytest.approx(ENGINE.step(320, 1, pairs(640, 960), 0))]


# Calibration and validation.


def test_costs_are_found_again_from_rows_that_they_made() -> None:
    cells = [(n, users, cache) for n in (64, 512, 1500) for users in (1, 8) for cache in ("cold", "warm")]
    rows = [Row(*cell, "plain", *batch(Row(*cell, "plain", 0, 0), COSTS)) for cell in cells]
    fitted = Costs(fit_engine(rows), ReadingCost())
    for known in rows:
        first, speed = batch(known, fitted)
        assert first == pytest.approx(known.first_ms, rel=0.2)
        assert speed == pytest.approx(known.speed, rel=0.1)


def test_the_table_of_measurements_is_read(tmp_path: Path) -> None:
    rows = read_rows()
    assert {one.arm for one in rows} >= {"plain", "one call, clean", "two calls, flagged"}
    assert {one.users for one in rows} == {1, 8}
    (tmp_path / "empty.md").write_text("# Nothing\n")
    with pytest.raises(ValueError, match="no table"):
        read_rows(tmp_path / "empty.md")
