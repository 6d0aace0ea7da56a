"""The API key on vLLM's own application, without an engine: vLLM builds its routes and middleware, with ours.

In a process of its own, since importing vLLM's server changes logging and much else.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from sae_runtime.serving.child import guard_arguments

KEY = "correct horse"
OPEN = {"/health", "/ping", "/metrics"}
Statuses = dict[str, dict[str, int]]

_SERVER = """
import json, sys, warnings
warnings.simplefilter("ignore")
from fastapi.testclient import TestClient
from vllm.entrypoints.launchers.app import build_app
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser
from sae_runtime.serving.child import guard_arguments
from sae_runtime.serving.limits import MAX_BODY

args = make_arg_parser(FlexibleArgumentParser()).parse_args(guard_arguments() + sys.argv[1:])
app = build_app(args, supported_tasks=("generate",))
client = TestClient(app, raise_server_exceptions=False)
keys = {"none": {}, "wrong": {"Authorization": "Bearer x"}, "right": {"Authorization": "Bearer correct horse"}}
statuses = {}
for route in app.routes:
    method = sorted(getattr(route, "methods", None) or ["GET"])[0]
    path = route.path.replace("{index}", "1").replace("{response_id}", "1")
    statuses[path] = {name: client.request(method, path, headers=head, json={}).status_code for name, head in keys.items()}
long = b'{"messages": [{"role": "user", "content": "' + b"x" * MAX_BODY + b'"}]}'
head = {**keys["right"], "Content-Type": "application/json"}
statuses["a long body"] = {"right": client.post("/v1/sae/inspect", content=long, headers=head).status_code}
statuses["no route"] = {name: client.get("/nowhere", headers=head).status_code for name, head in keys.items()}
print("RESULT" + json.dumps(statuses))
"""


@pytest.fixture(scope="module")
def statuses() -> Statuses:
    """Status by route and key of the server that ``sensecheck serve --api-key`` starts; nothing answers behind it."""
    environment = os.environ | {"VLLM_API_KEY": KEY, "VLLM_PLUGINS": "sensecheck", "VLLM_NO_USAGE_STATS": "1"}
    command = [sys.executable, "-c", _SERVER]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.rpartition("RESULT")[2])


def test_the_guard_is_asked_for_where_there_is_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    assert guard_arguments() == []
    monkeypatch.setenv("VLLM_API_KEY", KEY)
    assert guard_arguments() == ["--middleware", "sae_runtime.serving.guard.KeyGuard"]


def test_no_route_answers_without_the_key_but_those_for_probes(statuses: Statuses) -> None:
    assert statuses.keys() >= {"/invocations", "/tokenize", "/docs", "/openapi.json", "/version", "/scale_elastic_ep"}
    assert statuses.keys() >= {"/v1/chat/completions", "/v1/sae/inspect", "/v1/sae/health", "/v1/sae/features/1"}
    guarded = {path: found for path, found in statuses.items() if path not in OPEN | {"a long body"}}
    assert {found["none"] for found in guarded.values()} == {401}
    assert {found["wrong"] for found in guarded.values()} == {401}


def test_with_the_key_every_route_is_reached(statuses: Statuses) -> None:
    assert 401 not in {found["right"] for found in statuses.values()}
    assert statuses["/v1/sae/health"]["right"] == statuses["/docs"]["right"] == statuses["/version"]["right"] == 200
    assert statuses["/v1/sae/inspect"]["right"] == 400  # reached: the request is empty, and vLLM answers that with 400
    assert statuses["no route"]["right"] == 404


def test_probes_need_no_key(statuses: Statuses) -> None:
    assert all(401 not in statuses[path].values() for path in OPEN)
    assert statuses["/metrics"]["none"] == 200


def test_a_body_without_end_is_not_read_to_its_end(statuses: Statuses) -> None:
    assert statuses["a long body"]["right"] == 413
