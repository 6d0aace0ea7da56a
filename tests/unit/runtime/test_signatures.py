"""Signatures: what is fitted through the decoder is a plain linear readout of features."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from sae_runtime.build.contexts import ContextFeatures
from sae_runtime.build.signatures import fit_readout, fit_signature
from sae_runtime.detector.sites import SITES

D = 12
LATENTS = 40


def sentences(seed: int, senses: int, *, count: int = 20) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Sparse features of ``count`` sentences per sense; each sense has three latents of its own, the rest is chance."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(senses), count)
    x = rng.exponential(1.0, (len(labels), LATENTS)) * (rng.random((len(labels), LATENTS)) < 0.3)
    for sense in range(senses):
        own = labels == sense
        x[np.ix_(own, range(3 * sense, 3 * sense + 3))] += 2.0 * (rng.random((own.sum(), 3)) < 0.7)
    return x, labels


def directions(seed: int) -> NDArray[np.float64]:
    found = np.random.default_rng(seed).normal(size=(LATENTS, D))
    return found / np.linalg.norm(found, axis=1, keepdims=True)


@given(seed=st.integers(0, 1000), senses=st.integers(2, 4), most=st.integers(1, LATENTS))
def test_weights_lie_in_the_span_of_the_directions_and_senses_share_nothing(seed: int, senses: int, most: int) -> None:
    """The law of the decoded form: ``weights = W_dec @ w``. And scores mean something only beside each other."""
    x, labels = sentences(seed, senses)
    decoder = directions(seed + 1)
    readout = fit_readout(x, labels, decoder, most, 0.1)
    assert len(readout.columns) <= most
    assert sorted(set(readout.columns)) == list(readout.columns)
    assert readout.weights.shape == (senses, len(readout.columns))
    used = decoder[readout.columns]
    behind, *_ = np.linalg.lstsq(used, readout.weights.T, rcond=None)
    assert used @ behind == pytest.approx(readout.weights.T, abs=1e-6)
    assert readout.weights.sum(0) == pytest.approx(0, abs=1e-3)


@given(seed=st.integers(0, 1000))
def test_features_with_one_direction_share_their_evidence(seed: int) -> None:
    """A latent that never fired beside a sense's others still counts for it when it writes what they write."""
    x, labels = sentences(seed, 2)
    decoder = directions(seed + 1)
    decoder[1] = decoder[0]
    readout = fit_readout(x, labels, decoder, LATENTS, 0.1)
    places = {int(column): place for place, column in enumerate(readout.columns)}
    first, second = (readout.weights[:, places[column]] for column in (0, 1))
    assert first == pytest.approx(second)


def test_rare_features_are_not_read_and_with_none_left_the_shares_of_the_senses_are_given() -> None:
    x = np.zeros((9, LATENTS))
    x[:2, 5] = 1.0  # two sentences: too few
    labels = np.array([0] * 6 + [1] * 3)
    readout = fit_readout(x, labels, directions(0), 10, 0.1)
    assert len(readout.columns) == 0
    probabilities = np.exp(readout.logits(x))
    assert probabilities == pytest.approx(np.tile([2 / 3, 1 / 3], (9, 1)))


@pytest.mark.parametrize("seed", range(3))
def test_a_signature_reads_only_allowed_latents_at_the_site_that_tells_the_senses_apart(seed: int) -> None:
    x, labels = sentences(seed, 3, count=40)
    noise = np.random.default_rng(seed + 7)
    silent = {site: torch.from_numpy(noise.permutation(x)).float() for site in SITES}
    good = SITES[seed % len(SITES)]
    held = torch.zeros(len(labels), dtype=torch.bool)
    held[::4] = True
    data = ContextFeatures(
        sites={**silent, good: torch.from_numpy(x).float()},
        dense={site: torch.from_numpy(x @ directions(seed)).float() for site in SITES},
        labels=torch.from_numpy(labels),
        held_out=held,
    )
    allowed = [latent for latent in range(LATENTS) if latent != 4]
    fit = fit_signature(data, directions(seed), max_features=20, seed=0, allowed=allowed)
    assert fit.late.site == good
    assert fit.latents <= set(allowed)
    assert fit.held_out_probabilities.sum(1) == pytest.approx(1)
    right = fit.held_out_probabilities.argmax(1) == fit.held_out_labels
    assert fit.accuracy == pytest.approx(right.mean())
    assert fit.accuracy > 0.6  # chance is a third
    assert 0 <= fit.late.own_sense_low < 1
    again = fit_signature(data, directions(seed), max_features=20, seed=0, allowed=allowed)
    assert np.array_equal(again.late.readout.weights, fit.late.readout.weights)
