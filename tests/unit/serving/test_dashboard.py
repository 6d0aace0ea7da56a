"""The Grafana dashboard: every series that it asks for exists, with the labels that it asks for."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY, Counter, Gauge, Histogram

from sae_runtime.serving import metrics

ROOT = Path(__file__).parents[3]
DASHBOARD = ROOT / "docs" / "dashboard" / "sensecheck.json"
PAGE = ROOT / "docs" / "how-to" / "observability.md"

_NAME = re.compile(r"\b(?:sensecheck_|vllm:)\w+")
_DECLARED = re.compile(r'_(counter|gauge|histogram)_cls\(\s*name="(vllm:\w+)"')
_SUFFIXES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
_GROUPED = re.compile(r"\bby \(([\w, ]+)\)")
_SELECTED = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"")


def ours() -> dict[str, set[str]]:
    """Series that we register, and their labels."""
    kinds = {Counter: "counter", Gauge: "gauge", Histogram: "histogram"}
    made = [value for value in vars(metrics).values() if isinstance(value, tuple(kinds))]
    return {
        metric._name + suffix: set(metric._labelnames) | ({"le"} if suffix == "_bucket" else set())
        for metric in made
        for suffix in _SUFFIXES[kinds[type(metric)]]
    }


def vllms() -> set[str]:
    """Series that vLLM's source declares."""
    (folder,) = find_spec("vllm").submodule_search_locations  # type: ignore[union-attr, misc]
    source = (Path(folder) / "v1" / "metrics" / "loggers.py").read_text("utf-8")
    return {name + suffix for kind, name in _DECLARED.findall(source) for suffix in _SUFFIXES[kind]}


def panels() -> Iterator[dict[str, Any]]:
    for panel in json.loads(DASHBOARD.read_text("utf-8"))["panels"]:
        yield from [panel, *panel.get("panels", [])]


def expressions() -> list[str]:
    return [target["expr"] for panel in panels() for target in panel.get("targets", [])]


def test_every_series_exists() -> None:
    known = ours().keys() | vllms()
    assert len(vllms()) > 40
    for expression in expressions():
        names = _NAME.findall(expression)
        assert names, expression
        assert set(names) <= known, expression


def test_every_label_exists() -> None:
    """``instance`` is Prometheus' own; vLLM's series are asked for no other."""
    for expression in expressions():
        labels = {"instance"} | ({"le"} if "histogram_quantile" in expression else set())
        for name in _NAME.findall(expression):
            labels |= ours().get(name, set())
        used = {label for group in _GROUPED.findall(expression) for label in group.split(", ")}
        assert used | set(_SELECTED.findall(expression)) <= labels, expression


def test_every_metric_of_ours_has_a_panel_and_a_line_in_the_documentation() -> None:
    shown, documented = " ".join(expressions()), PAGE.read_text("utf-8")
    registered = {
        family.name for family in REGISTRY.collect() if family.name.startswith("sensecheck_")
    }  # without the suffixes of series
    assert len(registered) == 10
    for name in registered:
        assert name in shown, name
        assert f"`{name}" in documented, name


def test_the_first_token_of_vllm_is_shown_beside() -> None:
    assert any("vllm:time_to_first_token_seconds_bucket" in expression for expression in expressions())


def test_counters_are_shown_as_rates_and_quantiles_by_bucket() -> None:
    for expression in expressions():
        assert expression.count("(") == expression.count(")")
        if "_total" in expression:
            assert re.search(r"(rate|increase)\(", expression), expression
        if "histogram_quantile" in expression:
            assert "_bucket" in expression and "le" in expression, expression


def test_panels_have_a_title_a_description_and_a_place_of_their_own() -> None:
    taken: set[tuple[int, int]] = set()
    ids = []
    for panel in panels():
        ids.append(panel["id"])
        assert panel["title"]
        assert panel["type"] == "row" or panel["description"]
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("name", ["datasource", "instance"])
def test_variables_that_panels_use_are_defined(name: str) -> None:
    text = DASHBOARD.read_text("utf-8")
    assert f"${name}" in text or f"${{{name}}}" in text
    assert name in {variable["name"] for variable in json.loads(text)["templating"]["list"]}
