"""A few thousand cases of every fuzz target, the same ones each time; ``make fuzz`` tries many more."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings

from .registry import TARGETS, Target


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Thousands of bypasses are logged, as they should be."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.model
@pytest.mark.parametrize("name", TARGETS)
def test_the_law_holds(name: str) -> None:
    with warnings.catch_warnings():  # PyTorch warns of itself while vLLM's server is imported
        warnings.simplefilter("ignore")
        target = Target.load(name)
    count = settings(
        max_examples=TARGETS[name].quick, deadline=None, derandomize=True, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    count(given(target.cases)(target.check))()
