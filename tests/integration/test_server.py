"""The real vLLM server with the inspection routes, through the chain that users write."""

from __future__ import annotations

import json
import socket
import subprocess
import sys

import httpx
import pytest
from langchain_core.messages import HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI
from prometheus_client.parser import text_string_to_metric_families

from middleware import SAEAnnotator
from sae_runtime.errors import ServerError
from sae_runtime.serving import ModelServer, ServerOptions, served_model

pytestmark = pytest.mark.server


@pytest.fixture
def chat_model(server):
    return ChatOpenAI(
        base_url=f"{server.url}/v1", api_key="none", model=server.model, temperature=0, max_completion_tokens=24
    )


def test_the_readme_chain_answers(server, chat_model):
    prompt = ChatPromptTemplate.from_messages([("human", "{question}")])
    annotator = SAEAnnotator.from_url(server.url, on_error="raise", deadline=60)
    chain = prompt | annotator | chat_model | StrOutputParser()
    assert chain.invoke({"question": "What does a crane eat?"}).strip()
    assert annotator.stats.inspected == 1


async def test_the_chain_streams_asynchronously(server, chat_model):
    chain = SAEAnnotator.from_url(server.url, on_error="raise", deadline=60) | chat_model
    pieces = [chunk.text async for chunk in chain.astream("Name three colours.")]
    assert len([piece for piece in pieces if piece]) > 1


def test_the_server_reads_what_this_process_reads(server, inspector):
    text = "The bass was too heavy to carry up the stairs."
    here = inspector.inspect([{"role": "user", "content": text}])
    body = {"messages": [{"role": "user", "content": text}]}
    there = httpx.post(f"{server.url}/v1/sae/inspect", json=body, timeout=60).raise_for_status().json()
    assert there["mentions"] == [mention.model_dump() for mention in here.mentions]
    assert len(there["tokens"]) == len(here.tokens)


def test_health_names_model_and_fingerprints(server, inspector):
    health = httpx.get(f"{server.url}/v1/sae/health").raise_for_status().json()
    assert health["status"] == "ok"
    assert health["fingerprints"]["sae"] == inspector.view.sae_fingerprint
    assert health["model"] == server.model == served_model(server.url)


def test_bad_requests_are_json_errors(server):
    for body in ({"messages": []}, {"messages": [{"role": "user", "content": ""}]}, {}):
        response = httpx.post(f"{server.url}/v1/sae/inspect", json=body)
        assert response.status_code in (400, 422)
        assert "error" in response.json()


def test_a_dead_server_lets_the_prompt_through():
    with socket.socket() as taken:  # bound, not listening: connections are refused
        taken.bind(("127.0.0.1", 0))
        annotator = SAEAnnotator.from_url(f"http://127.0.0.1:{taken.getsockname()[1]}")
        message = HumanMessage("What is a mole?")
        assert annotator.invoke([message]) == [message]
    assert annotator.stats.bypassed["UnavailableError"] == 1


def test_a_port_in_use_is_a_typed_error(server, small_model):
    port = int(server.url.rsplit(":", 1)[1])
    with pytest.raises(ServerError, match=f"Port {port}"):
        ModelServer.start(small_model, ServerOptions(port=port))


def test_ask_prints_the_documented_json(server, small_model):
    command = [sys.executable, "-m", "ui", "ask", "--json", "--model", small_model, "--url", server.url]
    run = subprocess.run(
        [*command, "--domain", "biology", "--max-tokens", "16", "How often should I clean my mouse?"],
        capture_output=True, text=True, timeout=300, check=True,
    )  # fmt: skip
    report = json.loads(run.stdout)
    expected = {"model", "prompt", "mentions", "misreads", "annotated_messages", "answer", "plain_answer", "timings_ms"}
    assert expected <= report.keys()
    assert set(report["mentions"][0]) == {"concept", "text", "start", "end", "reading", "intended"}
    assert report["answer"]
    assert report["annotated_messages"][-1]["role"] == "user"
    if report["misreads"]:
        assert report["plain_answer"] is not None
        assert report["misreads"][0]["note"] in report["annotated_messages"][-1]["content"]


def test_a_server_of_another_model_is_refused(server, tmp_path):
    command = [sys.executable, "-m", "ui", "ask", "--model", "no-such-model", "--url", server.url, "Hello"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 2
    assert "no-such-model" in run.stderr


def scraped(server) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Series on vLLM's own endpoint."""
    text = httpx.get(f"{server.url}/metrics", timeout=30).raise_for_status().text
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def moved(before, after, name: str, **labels: str) -> float:
    key = (name, frozenset(labels.items()))
    return after.get(key, 0.0) - before.get(key, 0.0)


def test_vllms_metrics_count_inspections(server, inspector):
    before = scraped(server)
    mouse = [{"role": "user", "content": "How often should I clean my mouse?"}]
    body = {"messages": mouse, "domain": "biology"}
    assert httpx.post(f"{server.url}/v1/sae/inspect", json=body, timeout=60).raise_for_status().json()["misreads"]
    chat = {"model": server.model, "messages": mouse, "max_tokens": 4, "sensecheck": {"domain": "biology"}}
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=chat, timeout=120).raise_for_status().json()
    assert answer["sensecheck"]["bypassed"] is None
    blocks = [{"role": "user", "content": [{"type": "text", "text": "Where is the bank?"}]}]
    httpx.post(f"{server.url}/v1/chat/completions", json={**chat, "messages": blocks}, timeout=120).raise_for_status()
    after = scraped(server)
    for route in ("inspect", "one_call"):
        assert moved(before, after, "sensecheck_inspections_total", route=route, outcome="flagged") == 1
    assert moved(before, after, "sensecheck_inspections_total", route="one_call", outcome="unread") == 1
    assert moved(before, after, "sensecheck_bypasses_total", route="one_call", reason="InputError") == 1
    assert moved(before, after, "sensecheck_flags_total", concept="mouse") == 2
    assert moved(before, after, "sensecheck_note_tokens_total") > 0
    assert moved(before, after, "sensecheck_inspection_duration_seconds_count", route="one_call") == 2
    assert moved(before, after, "sensecheck_inspection_step_seconds_count", step="read") == 2
    in_use = [dict(labels) for (name, labels), value in after.items() if name == "sensecheck_catalog_info" and value]
    assert [(one["sae"], one["engine"]) for one in in_use] == [(inspector.view.sae_fingerprint, "vllm")]
    assert any(name == "vllm:time_to_first_token_seconds_count" for name, _ in after)


def test_the_servers_log_has_a_line_per_inspection_and_no_prompt(server):
    text = "How often should I clean my mouse, zebracanary?"
    httpx.post(f"{server.url}/v1/sae/inspect", json={"messages": [{"role": "user", "content": text}]}, timeout=60)
    httpx.post(f"{server.url}/v1/sae/inspect", json={"messages": [{"role": "user", "content": [text]}]}, timeout=60)
    log = server.log.read_text("utf-8", errors="replace")
    assert "[sensecheck] inspection id=" in log
    assert "zebracanary" not in log
    assert server.log.stat().st_mode & 0o777 == 0o600
