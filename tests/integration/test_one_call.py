"""Chat completions that the server reads, annotates and answers in one call."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from openai import OpenAI

from middleware import SAEAnnotator

pytestmark = pytest.mark.server

MOUSE = [{"role": "user", "content": "How often should I clean my mouse?"}]
FLAGGING = {"annotate": True, "domain": "biology"}
CLEAR = {"annotate": True}


def complete(server, messages=MOUSE, *, headers=None, **options):
    body = {"model": server.model, "messages": messages, "max_tokens": 16, "temperature": 0, **options}
    response = httpx.post(f"{server.url}/v1/chat/completions", json=body, headers=headers, timeout=120)
    return response.raise_for_status().json()


def text_of(answer) -> str:
    return answer["choices"][0]["message"]["content"]


def stream(server, **options) -> list[dict]:
    body = {"model": server.model, "messages": MOUSE, "max_tokens": 16, "temperature": 0, "stream": True, **options}
    chunks = []
    with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body, timeout=120) as response:
        lines = [line for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    chunks += [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    return chunks


def counters(server) -> dict[str, int]:
    return httpx.get(f"{server.url}/v1/sae/health").json()["counters"]


def test_a_flagged_prompt_is_answered_with_its_note(server):
    answer = complete(server, sensecheck=FLAGGING)
    report = answer["sensecheck"]
    assert report["flagged"] and report["bypassed"] is None
    assert report["misreads"][0]["concept"] == "mouse"
    assert report["misreads"][0]["intended"] == "animal"
    annotated = SAEAnnotator.from_url(server.url, domain="biology", on_error="raise", deadline=60).invoke(MOUSE)
    (place,) = report["places"]
    assert annotated[-1].content[place["start"] : place["end"]] == place["note"] == report["notes"][0]
    two_calls = complete(server, [{"role": "user", "content": annotated[-1].content}])
    assert text_of(answer) == text_of(two_calls)
    assert answer["usage"] == two_calls["usage"]


def test_a_clear_prompt_is_answered_as_it_stands(server):
    answer, plain = complete(server, sensecheck=CLEAR), complete(server)
    report = {name: value for name, value in answer["sensecheck"].items() if name != "catalog"}
    nothing = {"misreads": [], "notes": [], "places": [], "notes_left_out": 0, "imitations": []}
    assert report == {"flagged": False, **nothing, "bypassed": None}
    assert text_of(answer) == text_of(plain)
    assert "sensecheck" not in plain


def test_a_prompt_without_mentions_is_answered_as_it_stands(server):
    hello = [{"role": "user", "content": "Say hello."}]
    answer = complete(server, hello, sensecheck=CLEAR)
    assert answer["sensecheck"]["flagged"] is False
    assert text_of(answer) == text_of(complete(server, hello))


def test_the_header_opts_in_and_annotate_false_opts_out(server):
    assert "sensecheck" in complete(server, headers={"X-Sensecheck": "annotate"})
    assert "sensecheck" not in complete(server, sensecheck={"annotate": False})
    assert "sensecheck" not in complete(server, headers={"X-Sensecheck": "no"})


@pytest.mark.parametrize("options", [FLAGGING, CLEAR], ids=["flagged", "clear"])
def test_a_stream_says_the_same_and_ends_with_the_report(server, options):
    chunks = stream(server, sensecheck=options)
    whole = complete(server, sensecheck=options)
    said = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk["choices"])
    assert said == text_of(whole)
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["sensecheck"] == whole["sensecheck"]
    assert chunks[-1]["id"] == chunks[0]["id"]


def test_the_openai_client_sees_the_report(server):
    client = OpenAI(base_url=f"{server.url}/v1", api_key="none")
    answer = client.chat.completions.create(
        model=server.model, messages=MOUSE, max_tokens=8, extra_body={"sensecheck": FLAGGING}
    )
    assert answer.choices[0].message.content
    assert answer.sensecheck["flagged"]
    pieces = client.chat.completions.create(
        model=server.model, messages=MOUSE, max_tokens=8, stream=True, extra_body={"sensecheck": FLAGGING}
    )
    assert list(pieces)[-1].sensecheck["flagged"]


def test_what_cannot_be_read_is_answered_unread(server):
    blocks = [{"role": "user", "content": [{"type": "text", "text": "Where is the bank?"}]}]
    for answer in (
        complete(server, blocks, sensecheck=CLEAR),
        complete(server, add_generation_prompt=False, sensecheck=CLEAR),  # other tokens than the reader expects
    ):
        assert answer["sensecheck"]["bypassed"]
        assert answer["sensecheck"]["flagged"] is False
        assert answer["choices"]


def test_errors_of_the_request_are_vllm_s_own(server):
    for options in ({"max_tokens": -1}, {"temperature": 9e9}, {"model": "another"}):
        body = {"model": server.model, "messages": MOUSE, **options}
        plain, ours = (
            httpx.post(f"{server.url}/v1/chat/completions", json=body | extra, timeout=60)
            for extra in ({}, {"sensecheck": CLEAR})
        )
        assert plain.status_code == ours.status_code >= 400
    body = {"model": server.model, "messages": MOUSE, "sensecheck": {"anotate": True}}
    assert httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60).status_code == 400


def test_sixteen_at_once_each_get_their_own_report(server):
    options = [FLAGGING, CLEAR] * 8
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda option: complete(server, sensecheck=option), options))
    assert [answer["sensecheck"]["flagged"] for answer in answers] == [True, False] * 8
    assert {answer["sensecheck"]["bypassed"] for answer in answers} == {None}


def test_a_client_that_leaves_stops_the_generation(server):
    before = counters(server)
    for options in (FLAGGING, CLEAR):
        body = {"model": server.model, "messages": MOUSE, "max_tokens": 1500, "ignore_eos": True, "sensecheck": options}
        with pytest.raises(httpx.TimeoutException):
            httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=1.0)
    assert complete(server, sensecheck=CLEAR)["sensecheck"]["bypassed"] is None
    # Two generations of 1,500 tokens that went on would take far longer than this, on any machine.
    end = time.monotonic() + 8
    while running(server) and time.monotonic() < end:
        time.sleep(0.2)
    assert running(server) == 0
    assert counters(server)["inspected"] > before.get("inspected", 0)


def running(server) -> float:
    """Requests that vLLM is working on."""
    lines = httpx.get(f"{server.url}/metrics").text.splitlines()
    return float(next(line for line in lines if line.startswith("vllm:num_requests_running{")).rsplit(" ", 1)[1])


def test_the_routes_are_in_openapi(server):
    paths = httpx.get(f"{server.url}/openapi.json").json()["paths"]
    assert paths.keys() >= {"/v1/chat/completions", "/v1/sae/inspect", "/v1/sae/health", "/v1/sae/features/{index}"}
