"""What travels with a vLLM request is an opt-in, none, or InputError; an accepted one encodes exactly or is an EngineError."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

from sae_runtime.engines.features import PromptFeatures, encode_prompt
from sae_runtime.engines.vllm.requests import KEY, ReadRequest, digest
from sae_runtime.errors import EngineError, InputError
from sae_runtime.sae import JumpReLUSAE

from ..damage import DocumentEdit, document_edits, edited
from ..texts import documents

Case = tuple[str, Any, list[DocumentEdit], list[int]]

_latents = st.integers(-2, 40) | st.sampled_from([2**31, 2**63 - 1, 2**63, -(2**63), -(2**70)])
_tokens = st.lists(st.integers(0, 2**18), max_size=40)
CASES: st.SearchStrategy[Case] = st.one_of(
    st.tuples(st.just("anything"), documents(), st.just([]), _tokens),
    st.tuples(st.just("edited"), st.none() | st.lists(_latents, max_size=6), document_edits(3), _tokens),
)

HELD = [2, 3, 5, 8, 13, 21, 34]  # latents of the file; the full dictionary has more
_generator = torch.Generator().manual_seed(0)
_SAE = JumpReLUSAE(
    {
        "W_enc": torch.randn(4, len(HELD), generator=_generator),
        "W_dec": torch.randn(len(HELD), 4, generator=_generator),
        "b_enc": torch.randn(len(HELD), generator=_generator),
        "b_dec": torch.zeros(4),
        "threshold": torch.full((len(HELD),), 0.1),
    },
    {"sensecheck_latents": HELD},
)
_RESIDUAL = torch.randn(9, 4, generator=_generator)
_ALL = encode_prompt(_SAE, _RESIDUAL)


def check(case: Case) -> None:
    """See the module."""
    kind, value, edits, tokens = case
    params = value
    if kind == "edited":
        request = {"ticket": "0123456789abcdef" * 2, "reply": 4711, "digest": digest(tokens), "latents": value}
        params = edited({KEY: request, "do_remote_decode": False}, edits)
    try:
        wanted = ReadRequest.of(params)
    except InputError:
        return
    if wanted is None:
        assert not isinstance(params, dict) or KEY not in params, "an opt-in was overlooked"
        return
    assert ReadRequest.of(wanted.as_params()) == wanted, "an accepted opt-in does not survive the way"
    assert digest(tokens) == digest(list(tokens)) and (not tokens or digest(tokens) != digest(tokens[:-1]))
    try:
        features = encode_prompt(_SAE, _RESIDUAL, wanted.latents)
    except EngineError:
        assert not set(wanted.latents or []) <= set(HELD), "latents that are held are refused"
        return
    _same(features, None if wanted.latents is None else set(wanted.latents))


def _same(features: PromptFeatures, latents: set[int] | None) -> None:
    """The features are those of the full encoding, for the latents that were asked for."""
    kept = np.isin(_ALL.latents, list(HELD if latents is None else latents))
    assert latents is None or latents <= set(HELD), "latents that are not held are encoded"
    for name in ("positions", "latents"):
        np.testing.assert_array_equal(getattr(features, name), getattr(_ALL, name)[kept])
    np.testing.assert_allclose(features.values, _ALL.values[kept], rtol=1e-4, atol=1e-5)
