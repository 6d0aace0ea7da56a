"""The fuzzer finds what it is to find, keeps it so that it can be run again, and counts what it did."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from .damage import damaged, edited
from .engines import Result, Watched, run_random
from .registry import TARGETS, Target
from .reproducers import Reproducers, read_case


def no_hundred(case: tuple[str, int]) -> None:
    """A law that breaks for large numbers."""
    assert case[1] < 100, "too large"


CASES = st.tuples(st.text(max_size=3), st.integers(0, 10_000))


def test_a_broken_law_is_found_shrunk_and_kept(tmp_path: Path) -> None:
    result = run_random(Target("planted", "No hundred.", CASES, no_hundred), 1_000, 60, tmp_path)
    (kept,) = result.crashes
    assert read_case(Path(kept)) == ("", 100)
    text = Path(kept).read_text("utf-8")
    assert f"--replay {kept}" in text
    assert "too large" in text
    assert 0 < result.cases <= 2_000
    with pytest.raises(AssertionError):
        no_hundred(read_case(Path(kept)))


def test_a_law_that_holds_is_checked_as_often_as_was_asked(tmp_path: Path) -> None:
    seen: list[Any] = []
    result = run_random(Target("sound", "Always.", CASES, seen.append), 1_100, 60, tmp_path)
    assert result.crashes == []
    assert result.cases == len(seen) >= 1_100
    assert list(Reproducers(tmp_path, "sound")) == []


def test_no_case_is_checked_when_the_time_is_up(tmp_path: Path) -> None:
    assert run_random(Target("late", "Always.", CASES, lambda case: None), 1_000, 0, tmp_path).cases == 0


@pytest.mark.parametrize("case", ["\ud83c\n\u2028#\x85", [b"\xff", (None, -0.5, {"a": [2**70]})], {"": True}], ids=repr)
def test_a_case_is_kept_as_it_is(tmp_path: Path, case: Any) -> None:
    reproducers = Reproducers(tmp_path, "any")
    kept = reproducers.keep(case, ValueError("half \ud83c\nand # more"))
    assert read_case(Path(kept)) == case


def test_a_smaller_case_of_the_same_fault_replaces_a_larger_one(tmp_path: Path) -> None:
    reproducers = Reproducers(tmp_path, "any")
    for case in ([1, 2, 3], [1], [1, 2]):
        reproducers.keep(case, ValueError("x"))
    (path,) = reproducers
    assert read_case(path) == [1]


def test_the_case_at_hand_when_the_process_ends_is_kept(tmp_path: Path) -> None:
    reproducers = Reproducers(tmp_path, "any")
    watched = Watched(Target("any", "Always.", CASES, lambda case: None), reproducers, Result("any", "random"), 60)
    watched(("a", 1))
    kept = Reproducers(tmp_path, "any").keep_running("ended with code -11")
    assert kept is not None
    assert read_case(Path(kept)) == ("a", 1)
    watched(("b", 2))
    assert watched.finished().cases == 2
    assert reproducers.keep_running("ended") is None


def test_edits_leave_the_original_alone_and_are_the_same_each_time() -> None:
    document = {"a": [1, {"b": "c"}], "d": None}
    edits = [(2, "replace", "x"), (1, "wrap", None), (0, "remove", None), (5, "add", {"k": 1}), (3, "double", None)]
    first, second = edited(document, edits), edited(document, edits)
    assert first == second != document
    assert document == {"a": [1, {"b": "c"}], "d": None}
    assert damaged(b"abcdef", [("cut", 1, 2, b""), ("flip", 0, 1, b""), ("insert", 4, 1, b"--")]) == b"`def--"


def test_a_night_has_a_hundred_thousand_random_cases_and_a_test_run_a_few_thousand() -> None:
    assert sum(sizes.random for sizes in TARGETS.values()) >= 100_000
    assert 2_000 <= sum(sizes.quick for sizes in TARGETS.values()) <= 6_000
