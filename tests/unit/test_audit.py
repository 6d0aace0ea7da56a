"""The lock's audit never takes a service that it cannot reach for a clean lock."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def verdict() -> Callable[[dict[str, Any]], tuple[int, list[str]]]:
    return runpy.run_path(str(ROOT / "requirements" / "audit.py"))["verdict"]


def package(name: str, *ids: str) -> dict[str, Any]:
    return {
        "name": name,
        "version": "1.0",
        "vulns": [{"id": id_, "aliases": ["CVE-1"], "fix_versions": ["1.1"]} for id_ in ids],
    }


SKIPPED = {"name": "private", "skip_reason": "Dependency not found on PyPI"}


@pytest.mark.parametrize(
    ("dependencies", "code", "says"),
    [
        ([package("a"), package("b")], 0, "2 of 2 packages were checked; 0 have known vulnerabilities."),
        ([package("a", "PYSEC-1"), package("b")], 1, "a 1.0: PYSEC-1 (CVE-1), fixed in 1.1"),
        ([package("a", "PYSEC-1"), SKIPPED], 1, "NOT CHECKED, since the service does not know them: private."),
        ([package("a"), SKIPPED], 2, "1 of 2 packages were checked"),
        ([SKIPPED] * 200, 3, "NOTHING WAS CHECKED"),
        ([], 3, "NOTHING WAS CHECKED"),
    ],
)
def test_what_was_not_checked_is_said(
    verdict: Callable[[dict[str, Any]], tuple[int, list[str]]], dependencies: list[dict[str, Any]], code: int, says: str
) -> None:
    found, lines = verdict({"dependencies": dependencies})
    assert found == code
    assert says in "\n".join(lines)
    assert all(len(line) < 600 for line in lines)
