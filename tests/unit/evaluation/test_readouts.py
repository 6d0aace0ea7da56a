"""Readouts find what is there, nothing where nothing is, and never see the group that they read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csr_array

from sae_runtime.evaluation import readouts
from sae_runtime.evaluation.capture import Captured
from sae_runtime.evaluation.readouts import FUSED, KINDS, TOGETHER, Labelled, read_labels, read_labels_once

ITEMS, WIDTH = 240, 60


def made(*, told: bool, seed: int = 0) -> tuple[Captured, Labelled]:
    """Items in 24 groups; if ``told``, latent and dimension number 7 of the spot "after" tell the label."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, ITEMS)
    sparse = {spot: rng.random((ITEMS, WIDTH)) * (rng.random((ITEMS, WIDTH)) < 0.2) for spot in ("mention", "after")}
    dense = {spot: rng.normal(size=(ITEMS, WIDTH)).astype(np.float32) for spot in ("mention", "after")}
    for x in sparse.values():
        x[:, 3] = 0  # never fires
    if told:
        sparse["after"][:, 7] = labels * (1 + rng.random(ITEMS))
        dense["after"][:, 7] += 8 * labels
    split = np.repeat(["fit", "dev", "test"], [120, 60, 60])
    data = Labelled(labels, split == "fit", split == "dev", np.arange(ITEMS) // 10, np.ones(ITEMS), 2)
    return Captured({spot: csr_array(x) for spot, x in sparse.items()}, dense), data


@pytest.mark.parametrize("cross_fitted", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_told_is_read_on_unseen_items(kind: str, cross_fitted: bool) -> None:
    read, data = made(told=True)
    found = read_labels(kind, read, data, cross_fitted=cross_fitted)
    test = ~data.fit & ~data.dev
    assert (found.probabilities.argmax(1) == data.labels)[test].mean() > (0.75 if kind == "diffmean" else 0.95)
    assert found.spot in ("after", TOGETHER, FUSED)
    np.testing.assert_allclose(found.probabilities.sum(1), 1)


@pytest.mark.parametrize("cross_fitted", [False, True])
def test_labels_of_one_group_do_not_leak_into_its_own_reading(cross_fitted: bool) -> None:
    """Every group has one label and a dimension of its own: only who has seen the group can read it."""
    read, data = made(told=False)
    labels = np.repeat(np.arange(24) % 2, 10)
    for spot in read.dense.values():
        spot[:] = 0
        spot[np.arange(ITEMS), data.groups] = 5
    data = Labelled(labels, data.fit, data.dev, data.groups, data.weights, 2)
    found = read_labels("dense", read, data, cross_fitted=cross_fitted)
    test = ~data.fit & ~data.dev
    assert (found.probabilities.argmax(1) == labels)[test].mean() <= 0.7


def test_features_that_share_a_direction_are_read_together() -> None:
    """Each label has thirty latents, one of which fires: too rarely for a weight of its own, but their directions are alike."""
    read, data = made(told=False)
    rng = np.random.default_rng(1)
    x = np.zeros((ITEMS, WIDTH))
    x[np.arange(ITEMS), 30 * data.labels + rng.integers(0, 30, ITEMS)] = 1
    decoder = rng.normal(size=(WIDTH, 8)).astype(np.float32) * 0.1
    decoder[:30, 0], decoder[30:, 1] = 1, 1
    few = replace(data, fit=data.fit & (np.arange(ITEMS) % 5 == 0))
    alone = replace(read, features={"after": csr_array(x)})
    by_form = [read_labels("sae", r, few) for r in (alone, replace(alone, decoder=decoder))]
    accuracy = [(f.probabilities.argmax(1) == data.labels)[~data.fit].mean() for f in by_form]
    assert accuracy[0] < 0.8 < 0.97 < accuracy[1]
    assert "decoded" in by_form[1].setting


def test_spots_that_know_a_little_each_are_read_by_themselves_and_fused() -> None:
    """Six spots with a hint each, and one with so many idle dimensions that they drown the hints when all stand side by side."""
    rng = np.random.default_rng(2)
    _, data = made(told=False)
    dense = {f"s{n}": rng.normal(data.labels[:, None], size=(ITEMS, 1)).astype(np.float32) for n in range(6)}
    dense["idle"] = rng.normal(size=(ITEMS, 300)).astype(np.float32)
    fused = read_labels("dense", Captured({}, dense), data)
    alone = read_labels("dense", Captured({}, {"s0": dense["s0"]}), data)
    assert fused.spot == FUSED
    accuracy = [(f.probabilities.argmax(1) == data.labels)[~data.fit].mean() for f in (alone, fused)]
    assert accuracy[0] + 0.1 < accuracy[1]


def test_a_label_that_the_fit_never_met_is_least_likely() -> None:
    read, data = made(told=True)
    data = Labelled(data.labels, data.fit, data.dev, data.groups, data.weights, 3)
    assert read_labels("dense", read, data).probabilities[:, 2].max() < 0.1


def test_items_of_little_weight_count_little() -> None:
    read, data = made(told=True)
    wrong = data.labels.copy()
    misled = data.fit & (data.groups % 2 == 0)
    wrong[misled] = 1 - wrong[misled]
    weights = np.where(misled, 0.02, 1.0)
    right = [
        (read_labels("dense", read, Labelled(wrong, data.fit, data.dev, data.groups, counted, 2)).probabilities.argmax(1)
         == data.labels)[~data.fit].mean()
        for counted in (np.ones(ITEMS), weights)
    ]  # fmt: skip
    assert right[0] < 0.6 < 0.65 < right[1]


def test_a_reading_is_fitted_once_and_anew_when_anything_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, data = made(told=True)
    read = replace(read, key="abc")
    first = read_labels_once("dense", read, data, tmp_path)
    monkeypatch.setattr(readouts, "read_labels", lambda *_, **__: pytest.fail("fitted again"))
    again = read_labels_once("dense", read, data, tmp_path)
    np.testing.assert_allclose(again.probabilities, first.probabilities, atol=1e-6)
    assert (again.spot, again.setting, again.fit_accuracy) == (first.spot, first.setting, first.fit_accuracy)
    for changed in (replace(data, labels=1 - data.labels), replace(data, weights=data.weights * 2)):
        with pytest.raises(pytest.fail.Exception):
            read_labels_once("dense", read, changed, tmp_path)
    with pytest.raises(pytest.fail.Exception):
        read_labels_once("dense", replace(read, key="other"), data, tmp_path)
