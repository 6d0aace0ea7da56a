"""What travels with a request that is to be read."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sae_runtime.engines.vllm.requests import KEY, ReadRequest, digest
from sae_runtime.errors import InputError

TICKET = "0123456789abcdef" * 2


@given(
    st.integers(1, 2**22), st.lists(st.integers(0, 2**17)), st.none() | st.lists(st.integers(0, 2**17)), st.booleans()
)
def test_the_opt_in_survives_the_way(reply: int, tokens: list[int], latents: list[int] | None, residual: bool) -> None:
    request = ReadRequest(ticket=TICKET, reply=reply, digest=digest(tokens), latents=latents, residual=residual)
    assert ReadRequest.of(request.as_params()) == request


@pytest.mark.parametrize("params", [None, {}, {"do_remote_prefill": True}, "sensecheck", []])
def test_other_requests_do_not_opt_in(params: Any) -> None:
    assert ReadRequest.of(params) is None


@pytest.mark.parametrize(
    "value",
    [
        True,
        {},
        {"ticket": "../../etc", "reply": 1, "digest": 0},
        {"ticket": TICKET, "reply": 0, "digest": 0},
        {"ticket": TICKET, "reply": "ipc://elsewhere", "digest": 0},
        {"ticket": TICKET, "reply": 1, "digest": 0, "address": "tcp://elsewhere"},
        {"ticket": TICKET, "reply": 1, "digest": 0, "latents": "all"},
        {"ticket": TICKET, "reply": 1, "digest": 0, "latents": [2**63]},
        {"ticket": TICKET, "reply": 1, "digest": 0, "latents": [-1]},
    ],
)
def test_a_malformed_opt_in_is_an_input_error(value: Any) -> None:
    with pytest.raises(InputError, match="malformed"):
        ReadRequest.of({KEY: value})


@given(st.lists(st.integers(0, 2**17), min_size=2, unique=True))
def test_other_tokens_have_another_digest(tokens: list[int]) -> None:
    assert digest(tokens) == digest(list(tokens))
    assert digest(tokens) != digest(tokens[:-1])
    assert digest(tokens) != digest(tokens[::-1])
