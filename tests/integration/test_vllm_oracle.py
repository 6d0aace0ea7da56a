"""What the vLLM worker reads, against a plain transformers forward of the same weights.

Two servers: one as users start it (eager, the type that suits the machine), one compiled, in bfloat16, with small chunks and
a cache so small that requests are preempted.
"""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import torch
from safetensors.torch import load

from sae_runtime.engines.features import encode_prompt
from sae_runtime.serving import ModelServer

pytestmark = pytest.mark.server

COSINE = 0.999  # mean over a prompt's tokens; bfloat16 stays above 0.9998
JACCARD = 0.95  # mean over tokens of the active latents
WORDS = [
    "bank",
    "river",
    "money",
    "spring",
    "coil",
    "water",
    "crane",
    "bird",
    "steel",
    "mouse",
    "bass",
    "light",
    "note",
    "the",
    "a",
    "of",
    "and",
    "we",
    "saw",
    "left",
    "heavy",
]
MISREAD = {"messages": [{"role": "user", "content": "How often should I clean my mouse?"}], "domain": "biology"}


@pytest.fixture(params=["server", "cramped_server"])
def any_server(request) -> ModelServer:
    return request.getfixturevalue(request.param)


def text_ids(inspector, tokens: int, seed: int) -> list[int]:
    """A prompt of exactly ``tokens`` tokens."""
    words = " ".join(random.Random(seed).choices(WORDS, k=tokens + 8))
    return inspector.detector.encoder.encode_text(f"{seed}. {words}")[:tokens]


def residual(server: ModelServer, token_ids: list[int]) -> torch.Tensor:
    response = httpx.post(f"{server.url}/v1/sae/residual", json={"token_ids": token_ids}, timeout=300)
    return load(response.raise_for_status().content)["residual"].float()


def assert_same(inspector, token_ids: list[int], got: torch.Tensor) -> None:
    want = inspector.engine.residual([token_ids])[0]
    assert got.shape == want.shape
    assert torch.nn.functional.cosine_similarity(got, want, dim=-1).mean() >= COSINE
    if len(token_ids) > 8:
        assert overlap(active(inspector, got), active(inspector, want)) >= JACCARD


def active(inspector, stream: torch.Tensor) -> list[set[int]]:
    """Active latents by token."""
    features = encode_prompt(inspector.sae, stream)
    rows: list[set[int]] = [set() for _ in range(len(features))]
    for position, latent in zip(features.positions.tolist(), features.latents.tolist(), strict=True):
        rows[position].add(latent)
    return rows


def overlap(first: list[set[int]], second: list[set[int]]) -> float:
    shares = [len(a & b) / len(a | b) for a, b in zip(first, second, strict=True) if a | b]
    return sum(shares) / len(shares)


@pytest.mark.parametrize("tokens", [1, 2, 31, 32, 33, 127, 128, 129, 400])
def test_every_position_is_read(any_server, inspector, tokens):
    token_ids = text_ids(inspector, tokens, seed=tokens)
    assert_same(inspector, token_ids, residual(any_server, token_ids))


def test_the_longest_prompt_is_read_to_its_end_and_a_longer_one_is_an_error(any_server, inspector, context):
    token_ids = text_ids(inspector, context - 1, seed=1)
    assert_same(inspector, token_ids, residual(any_server, token_ids))
    body = {"token_ids": text_ids(inspector, context + 1, seed=1)}
    assert httpx.post(f"{any_server.url}/v1/sae/residual", json=body, timeout=60).status_code == 422


def test_a_repeated_prompt_and_a_shared_prefix_come_whole_from_the_cache(any_server, inspector):
    head = text_ids(inspector, 260, seed=7)
    first, again = residual(any_server, head), residual(any_server, head)
    longer = head + text_ids(inspector, 70, seed=8)
    assert_same(inspector, head, first)
    assert_same(inspector, head, again)
    assert_same(inspector, longer, residual(any_server, longer))
    assert cached_tokens(any_server) > 0


def test_sixteen_requests_at_once_do_not_mix(any_server, inspector):
    """Every other one is inspected; the others generate."""
    lengths = [3, 40, 90, 130, 170, 220, 260, 300]
    prompts = [text_ids(inspector, length, seed=100 + length) for length in lengths]
    with ThreadPoolExecutor(16) as pool:
        answers = [pool.submit(generate, any_server, f"Count from {n}.", 24) for n in range(8)]
        streams = list(pool.map(lambda ids: residual(any_server, ids), prompts))
        assert all(answer.result() for answer in answers)
    for token_ids, stream in zip(prompts, streams, strict=True):
        assert_same(inspector, token_ids, stream)


def test_preempted_requests_are_read_right(cramped_server, inspector):
    """Long answers fill the cache while prompts come in; some requests lose their blocks and start over."""
    before = metric(cramped_server, "vllm:num_preemptions_total")
    prompts = [text_ids(inspector, 500, seed=seed) for seed in range(200, 206)]
    with ThreadPoolExecutor(16) as pool:
        answers = [pool.submit(generate, cramped_server, f"Tell me about the number {n}.", 250) for n in range(10)]
        streams = list(pool.map(lambda ids: residual(cramped_server, ids), prompts))
        assert all(answer.result() for answer in answers)
    assert metric(cramped_server, "vllm:num_preemptions_total") > before
    for token_ids, stream in zip(prompts, streams, strict=True):
        assert_same(inspector, token_ids, stream)


def test_requests_abandoned_in_mid_prefill_leave_nothing_behind(cramped_server, inspector):
    shared_memory = set(Path("/dev/shm").iterdir())  # noqa: S108 (what is looked at is exactly this folder)
    for seed in range(4):
        with pytest.raises(httpx.TimeoutException):
            token_ids = text_ids(inspector, 1900, seed=300 + seed)
            httpx.post(f"{cramped_server.url}/v1/sae/residual", json={"token_ids": token_ids}, timeout=0.3)
    token_ids = text_ids(inspector, 60, seed=310)
    assert_same(inspector, token_ids, residual(cramped_server, token_ids))
    health = httpx.get(f"{cramped_server.url}/v1/sae/health").json()
    assert health["waiting"] == 0
    assert metric(cramped_server, "vllm:kv_cache_usage_perc") == 0
    assert metric(cramped_server, "vllm:num_requests_running") == 0
    assert set(Path("/dev/shm").iterdir()) <= shared_memory  # noqa: S108


def test_readings_give_the_flags_that_transformers_gives(any_server, inspector):
    conversations = [
        [{"role": "user", "content": "We sat on the bank and watched the river."}],
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "The crane flew over the marsh."},
            {"role": "assistant", "content": "Cranes often do."},
            {"role": "user", "content": "Can a mouse live near a bank, and what would it eat in spring?"},
        ],
        MISREAD["messages"],
    ]
    for messages in conversations:
        for domain in (None, "biology"):
            here = inspector.inspect(messages, domain=domain)
            body = {"messages": messages, "domain": domain}
            response = httpx.post(f"{any_server.url}/v1/sae/inspect", json=body, timeout=60)
            there = response.raise_for_status().json()
            assert [m["concept"] for m in there["misreads"]] == [m.concept for m in here.misreads]
            assert len(there["tokens"]) == len(here.tokens)
            for got, want in zip(there["mentions"], here.mentions, strict=True):
                assert got["reading"] == pytest.approx(want.reading, abs=0.05)
                assert got["intended"] == want.intended


def test_all_latents_or_the_mentions_alone_give_the_same_reading(server):
    first, second = (
        httpx.post(f"{server.url}/v1/sae/inspect", json={**MISREAD, "tokens": tokens}, timeout=60).json()
        for tokens in (True, False)
    )
    assert first["tokens"] and not second["tokens"]
    assert first["misreads"] == second["misreads"]


def test_a_prompt_without_mentions_does_not_reach_the_engine(server):
    before = metric(server, "vllm:request_success_total")
    body = {"messages": [{"role": "user", "content": "Hello there."}], "tokens": False}
    assert httpx.post(f"{server.url}/v1/sae/inspect", json=body, timeout=60).json()["mentions"] == []
    assert metric(server, "vllm:request_success_total") == before


def test_a_feature_has_a_page(server):
    reading = httpx.post(f"{server.url}/v1/sae/inspect", json=MISREAD, timeout=60).json()
    index = reading["misreads"][0]["features"][0]["index"]
    feature = httpx.get(f"{server.url}/v1/sae/features/{index}").raise_for_status().json()
    assert feature["index"] == index
    assert feature["label"] and feature["examples"]
    assert "mouse" in feature["concepts"]
    assert httpx.get(f"{server.url}/v1/sae/features/10000000").status_code == 404


def generate(server: ModelServer, text: str, tokens: int) -> str:
    body = {
        "model": server.model,
        "messages": [{"role": "user", "content": text}],
        "max_tokens": tokens,
        "ignore_eos": True,
    }
    response = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=300)
    return response.raise_for_status().json()["choices"][0]["message"]["content"]


def metric(server: ModelServer, name: str) -> float:
    lines = httpx.get(f"{server.url}/metrics").text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"{name}{{"))


def cached_tokens(server: ModelServer) -> float:
    return metric(server, "vllm:prefix_cache_hits_total")
