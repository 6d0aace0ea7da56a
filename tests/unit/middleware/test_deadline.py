"""How long a reading may take: the model's own time for such prompts and a grace beyond, never more than the ceiling."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from middleware import SAEAnnotator
from middleware.policy import _ENOUGH, _PREFILLS, FailurePolicy
from middleware.testing import FakeInspector
from sae_runtime.detector.results import MentionReading, Reading

Call = Callable[..., Any]

# The machine may be busy, so examples have no deadline; the same examples run every time.
same_examples = settings(deadline=None, derandomize=True, database=None)

sizes = st.integers(0, 10_000)
seconds = st.floats(0, 60)
graces = st.floats(0, 10)
ceilings = st.floats(0.001, 60)
readings = st.lists(st.tuples(sizes, seconds), min_size=_ENOUGH, max_size=50)

MENTION = MentionReading(concept="bank", text="bank", message=0, start=0, end=4, reading={"a": 1}, intended={"a": 1})


def reading_that_took(seconds: float | None, *, mentions: Sequence[MentionReading] = (MENTION,)) -> Reading:
    """A reading for which the model needed ``seconds`` (None: nobody measured)."""
    timings = {} if seconds is None else {"features": seconds * 1e3}
    return Reading(
        model="m",
        mentions=list(mentions),
        misreads=[],
        tokens=[],
        truncated=False,
        timings_ms={"total": 1.0, **timings},
    )


def policy_after(measured: Iterable[tuple[int, float]]) -> FailurePolicy:
    """A policy that has seen readings of so many characters that took so many seconds."""
    policy = FailurePolicy()
    for characters, took in measured:
        policy.count_reading(reading_that_took(took), characters)
    return policy


@pytest.mark.parametrize("count", range(_ENOUGH))
def test_the_ceiling_holds_until_there_are_enough_readings(count: int) -> None:
    assert policy_after([(100, 0.01)] * count).deadline([100], 5.0, 0.3) == 5.0


def test_it_is_the_grace_beyond_the_slowest_reading_from_then_on() -> None:
    policy = policy_after([(100, 0.2), (50, 0.5), (100, 0.1)])
    assert policy.deadline([100], 5.0, 0.3) == pytest.approx(0.3 + 0.5)
    assert policy.deadline([1], 5.0, 0.3) == pytest.approx(0.3 + 0.5)  # less text is not given less time
    assert policy.deadline([], 5.0, 0.0) == pytest.approx(0.5)


def test_more_text_than_any_reading_had_is_given_more_time_in_proportion() -> None:
    policy = policy_after([(100, 0.2), (50, 0.5), (100, 0.1)])
    assert policy.deadline([250], 5.0, 0.3) == pytest.approx(0.3 + 0.5 * 2.5)
    assert policy.deadline([100, 100, 50], 5.0, 0.3) == pytest.approx(0.3 + 0.5 * 2.5)  # a batch is as long as its sum
    assert policy.deadline([100_000], 5.0, 0.3) == 5.0


def test_without_grace_the_ceiling_alone_holds() -> None:
    assert policy_after([(100, 0.01)] * 10).deadline([100], 5.0, None) == 5.0


def test_what_the_model_was_not_asked_says_nothing_about_its_speed() -> None:
    policy = FailurePolicy()
    for _ in range(10):
        policy.count_reading(reading_that_took(0.0, mentions=[]), 100)  # no mention, no forward pass
        policy.count_reading(reading_that_took(None), 100)
    assert policy.stats.inspected == 20
    assert policy.deadline([100], 5.0, 0.3) == 5.0


def test_old_readings_are_forgotten() -> None:
    policy = policy_after([(100, 4.0), *[(100, 0.1)] * _PREFILLS])
    assert policy.deadline([100], 5.0, 0.3) == pytest.approx(0.4)
    policy = policy_after([(100, 4.0), *[(100, 0.1)] * (_PREFILLS - 1)])
    assert policy.deadline([100], 5.0, 0.3) == pytest.approx(4.3)


def test_readings_of_nothing_divide_nothing_by_zero() -> None:
    assert policy_after([(0, 0.1)] * _ENOUGH).deadline([0], 5.0, 0.3) == pytest.approx(0.4)
    assert policy_after([(0, 0.1)] * _ENOUGH).deadline([3], 5.0, 0.3) == pytest.approx(0.6)


@given(st.lists(st.tuples(sizes, seconds), max_size=50), st.lists(sizes, max_size=5), ceilings, st.none() | graces)
@same_examples
def test_it_is_never_above_the_ceiling(
    measured: list[tuple[int, float]], characters: list[int], ceiling: float, grace: float | None
) -> None:
    found = policy_after(measured).deadline(characters, ceiling, grace)
    assert 0 <= found <= ceiling
    if grace is None or len(measured) < _ENOUGH:
        assert found == ceiling


@given(readings, st.lists(sizes, max_size=5), ceilings, graces)
@same_examples
def test_it_is_never_less_than_the_grace_beyond_the_slowest(
    measured: list[tuple[int, float]], characters: list[int], ceiling: float, grace: float
) -> None:
    slowest = max(took for _, took in measured[-_PREFILLS:])
    assert policy_after(measured).deadline(characters, ceiling, grace) >= min(ceiling, grace + slowest) * (1 - 1e-9)


@given(readings, sizes, sizes, ceilings, graces)
@same_examples
def test_more_text_is_never_given_less_time(
    measured: list[tuple[int, float]], one: int, more: int, ceiling: float, grace: float
) -> None:
    policy = policy_after(measured)
    assert policy.deadline([one], ceiling, grace) <= policy.deadline([one + more], ceiling, grace)
    assert policy.deadline([one, more], ceiling, grace) == policy.deadline([one + more], ceiling, grace)


@given(readings, sizes, ceilings, graces, graces)
@same_examples
def test_more_grace_or_a_higher_ceiling_never_gives_less_time(
    measured: list[tuple[int, float]], characters: int, ceiling: float, one: float, more: float
) -> None:
    policy = policy_after(measured)
    assert policy.deadline([characters], ceiling, one) <= policy.deadline([characters], ceiling, one + more)
    assert policy.deadline([characters], ceiling, one) <= policy.deadline([characters], ceiling + more, one)


@given(readings, sizes, ceilings, graces)
@same_examples
def test_the_order_of_the_readings_does_not_matter(
    measured: list[tuple[int, float]], characters: int, ceiling: float, grace: float
) -> None:
    measured = measured[:_PREFILLS]
    forwards, backwards = policy_after(measured), policy_after(reversed(measured))
    assert forwards.deadline([characters], ceiling, grace) == backwards.deadline([characters], ceiling, grace)


class Timed(FakeInspector):
    """Says that the model needed 100 ms for each prompt."""

    def _reading(self, request: Any) -> Reading:
        return super()._reading(request).model_copy(update={"timings_ms": {"features": 100.0, "total": 101.0}})


def test_the_annotator_hands_the_deadline_to_its_source(call: Call) -> None:
    source = Timed({"bank": "River."})
    annotator = SAEAnnotator(source=source, deadline=2.0, grace=0.25)
    for _ in range(_ENOUGH):
        call(annotator, "invoke", "bank")
    call(annotator, "invoke", "bank")
    call(annotator, "batch", ["bank"] * 3)
    assert source.deadlines == pytest.approx([2.0] * _ENOUGH + [0.35] + [0.25 + 0.1 * 3] * 3)


def test_an_annotator_without_grace_waits_as_long_as_its_ceiling(call: Call) -> None:
    source = Timed({"bank": "River."})
    annotator = SAEAnnotator(source=source, deadline=2.0, grace=None)
    for _ in range(5):
        call(annotator, "invoke", "bank")
    assert source.deadlines == [2.0] * 5


def test_each_annotator_learns_for_itself(call: Call) -> None:
    source = Timed({"bank": "River."})
    learned = SAEAnnotator(source=source, deadline=2.0)
    for _ in range(_ENOUGH):
        call(learned, "invoke", "bank")
    call(SAEAnnotator(source=source, deadline=2.0), "invoke", "bank")
    assert source.deadlines[-1] == 2.0
