"""Which targets there are, and how many cases each gets in which run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Any, cast

from hypothesis import strategies as st

Check = Callable[[Any], None]


@dataclass(frozen=True)
class Sizes:
    """Cases of one target: ``quick`` in ``make test``; by night ``random`` from hypothesis, ``guided`` by coverage."""

    quick: int
    random: int
    guided: int


# Slow ones (a file is written and opened, an application is asked) get fewer, and stand last: they get the time that is left.
TARGETS = {
    "inputs": Sizes(300, 10_000, 6_000),
    "annotator": Sizes(200, 8_000, 4_000),
    "server_answers": Sizes(300, 12_000, 8_000),
    "mentions": Sizes(300, 12_000, 8_000),
    "notes": Sizes(400, 15_000, 10_000),
    "read_request": Sizes(300, 12_000, 8_000),
    "channel": Sizes(250, 8_000, 5_000),
    "sae_folder": Sizes(250, 8_000, 5_000),
    "spans": Sizes(250, 8_000, 5_000),
    "glossary": Sizes(200, 6_000, 4_000),
    "build_config": Sizes(200, 6_000, 4_000),
    "packs": Sizes(150, 4_000, 2_500),
    "one_call": Sizes(150, 3_000, 2_000),
    "routes": Sizes(150, 3_000, 1_500),
    "catalog_file": Sizes(80, 2_500, 1_500),
}


@dataclass(frozen=True)
class Target:
    """A loaded target: its name, the first line of its docstring, its cases and its check."""

    name: str
    law: str
    cases: st.SearchStrategy[Any]
    check: Check

    @classmethod
    def load(cls, name: str) -> Target:
        """Import the target's module, which may take seconds."""
        module: ModuleType = import_module(f".targets.{name}", __package__)
        law = (module.__doc__ or "").strip().splitlines()[0]
        return cls(name, law, cast("st.SearchStrategy[Any]", module.CASES), cast("Check", module.check))
