"""What the scheduler's half of the connector does with requests that want to be read."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from sae_runtime.engines.vllm.requests import ReadRequest, digest
from sae_runtime.errors import EngineError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, on importing vLLM's models
TOKENS = [5, 6, 7]


def asked(*, residual: bool, digest_of: list[int] = TOKENS, allowed: bool = False) -> tuple[list[Any], list[str]]:
    """What a connector answers to a request at once, and the requests that it keeps to be read."""
    from sae_runtime.engines.vllm.connector import SAEConnector

    answers: list[Any] = []
    connector: Any = object.__new__(SAEConnector)  # as in the scheduler's process, without vLLM's own set-up
    connector._outbox = SimpleNamespace(send=lambda reply, ticket, result: answers.append(result))
    connector._residual_allowed, connector._artefacts, connector._pending = allowed, "artefacts", {}
    wanted = ReadRequest(ticket="0" * 32, reply=1, digest=digest(digest_of), latents=None, residual=residual)
    request = SimpleNamespace(
        kv_transfer_params=wanted.as_params(), prompt_token_ids=TOKENS, request_id="a", num_prompt_tokens=len(TOKENS)
    )
    connector.on_new_request(request)
    return answers, list(connector._pending)


def test_a_prompt_is_kept_to_be_read() -> None:
    assert asked(residual=False) == ([], ["a"])
    assert asked(residual=True, allowed=True) == ([], ["a"])


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        ({"residual": True}, "does not hand out residual streams"),
        ({"residual": False, "digest_of": [5, 6]}, "other tokens"),
    ],
)
def test_what_may_not_be_read_is_refused_at_once(request_: dict[str, Any], reason: str) -> None:
    """A client of vLLM's own routes can write the opt-in itself; residual streams need the server's consent all the same."""
    (answer,), kept = asked(**request_)
    assert isinstance(answer, EngineError)
    assert reason in str(answer)
    assert kept == []
