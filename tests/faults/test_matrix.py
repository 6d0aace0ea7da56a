"""The matrix in docs/reliability.md: every row has a promise, and names tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
SECTION = re.compile(r"^## Faults$(.*?)(?=^## |\Z)", re.M | re.S)
CELLS = (
    "worker is killed", "API server is killed", "route hangs", "replaced while it is served", "bit is flipped", "disk is full",
    "read-only", "clock jumps", "locks the catalog", "killed in any of its steps", "two builds", "upgrade of the schema is killed",
    "client leaves",
)  # fmt: skip


def rows() -> list[list[str]]:
    (section,) = SECTION.findall((ROOT / "docs" / "reliability.md").read_text("utf-8"))
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def names(path: Path) -> set[str]:
    return {node.name for node in ast.walk(ast.parse(path.read_text("utf-8"))) if hasattr(node, "name")}


def test_every_row_names_tests_that_exist() -> None:
    for fault, promise, tests in rows():
        assert fault
        assert promise
        named = re.findall(r"`([\w./]+)::(\w+)`", tests)
        assert named, fault
        for file, test in named:
            path = ROOT / file if "/" in file else ROOT / "tests" / "faults" / file
            assert test in names(path), f"{file}::{test}"


def test_every_fault_of_the_issue_has_a_row() -> None:
    faults = [row[0] for row in rows()]
    assert [cell for cell in CELLS if not any(cell in fault for fault in faults)] == []
