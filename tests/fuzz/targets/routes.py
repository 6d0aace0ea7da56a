"""Each route answers as its OpenAPI description says (status, type, schema), and no request is an error of the server."""

from __future__ import annotations

import json
import os
from functools import cache
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch
from urllib.parse import quote

import schemathesis
from fastapi import FastAPI
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.core import NOT_SET
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from vllm.entrypoints.serve.exception_handling.register import init_exception_handler

from sae_runtime.paths import CATALOG_FILE
from sae_runtime.serving.plugin import SensecheckEndpoint
from sae_runtime.serving.service import ReadingService

from ..asgi import ask
from ..damage import document_edits, edited
from ..files import scratch
from ..small_catalog import CONCEPTS, NoEngine, small_catalog, small_detector
from ..texts import documents, texts

Case = tuple[str, str, dict[str, Any]]

_PARTS = ("path_parameters", "query", "headers", "cookies", "body")
_CHECKS = [
    schemathesis.checks.not_a_server_error, status_code_conformance, content_type_conformance,
    response_schema_conformance,
]  # fmt: skip


@cache
def _app() -> FastAPI:
    """The reading routes with a real detector and catalog, and vLLM's handlers of errors, but no engine."""
    folder = scratch() / "served"
    folder.mkdir()
    (folder / CATALOG_FILE).write_bytes(small_catalog())
    app = FastAPI()
    endpoint = SensecheckEndpoint()
    with patch.dict(os.environ, {"SENSECHECK_SERVE_RESIDUAL": "1"}):
        endpoint.attach_reading_routes(app)
    endpoint.service = ReadingService(small_detector(), NoEngine())  # type: ignore[arg-type]
    endpoint._artefacts = SimpleNamespace(folder=folder, catalog=folder / CATALOG_FILE, view=small_detector().view)  # type: ignore[assignment]
    init_exception_handler(app)
    app.state.args = SimpleNamespace(log_error_stack=False)
    return app


def _literal(case: Any) -> Case:
    """A case of schemathesis as plain data."""
    parts = {name: getattr(case, name) for name in _PARTS}
    given = {
        name: dict(part) if hasattr(part, "items") else part for name, part in parts.items() if part is not NOT_SET
    }
    return case.operation.method, case.operation.path, given


_SCHEMA = schemathesis.openapi.from_asgi("/openapi.json", _app())
_from_schema = st.one_of(
    [
        found.ok().as_strategy(generation_mode=mode).map(_literal)
        for found in _SCHEMA.get_all_operations()
        for mode in GenerationMode
    ]
)
_body = st.fixed_dictionaries(
    {
        "messages": st.lists(
            st.fixed_dictionaries({"role": st.just("user") | texts(1), "content": texts(8)}), max_size=3
        )
    },
    optional={
        "domain": texts(1) | st.just("finance"),
        "read": st.lists(st.integers(-1, 3), max_size=3),
        "tokens": st.booleans(),
        "only": st.lists(st.sampled_from(CONCEPTS) | texts(1), max_size=2),
        "without": st.lists(st.sampled_from(CONCEPTS) | texts(1), max_size=2),
        "picks": st.dictionaries(st.sampled_from(CONCEPTS) | texts(1), texts(1) | st.just("finance"), max_size=2),
        "glossary": st.fixed_dictionaries(
            {
                "terms": st.lists(
                    st.fixed_dictionaries({"term": texts(1), "meaning": texts(1), "otherwise": texts(1)}), max_size=2
                )
            }
        ),
    },
)
_inspections = st.builds(
    lambda body, edits: ("post", "/v1/sae/inspect", {"body": edited(body, edits)}),
    _body,
    st.just([]) | document_edits(2),
)
_features = st.builds(
    lambda index: ("get", "/v1/sae/features/{index}", {"path_parameters": {"index": index}}),
    st.integers(0, 9300) | st.sampled_from([-1, 2**31, 2**63, 2**64, 10**30]) | documents(),
)
CASES: st.SearchStrategy[Case] = st.one_of(_from_schema, _inspections, _inspections, _features)


def check(case: Case) -> None:
    """See the module."""
    method, path, parts = case
    built = _SCHEMA[path][method].Case(**parts)
    request: dict[str, Any] = {"headers": {"Content-Type": "application/json"}} if "body" in parts else {}
    if "body" in parts:
        body = parts["body"]
        request["content"] = body if isinstance(body, bytes) else json.dumps(body).encode()
    if parts.get("query"):
        request["params"] = {str(name): str(value) for name, value in parts["query"].items()}
    values = {name: str(value) for name, value in (parts.get("path_parameters") or {}).items()}
    if any(not value or "/" in value for value in values.values()):
        return  # another route, which is not there
    url = path.format(**{name: quote(value, safe="", errors="surrogatepass") for name, value in values.items()})
    response = ask(_app(), method.upper(), url, **request)
    built.validate_response(response, checks=_CHECKS)
    if response.status_code == 200 and path.endswith("inspect"):
        _annotated(response.json())


def _annotated(answer: dict[str, Any]) -> None:
    """What a mention or misread is said to be stands there."""
    for found in (*answer["mentions"], *answer["misreads"]):
        content = answer["annotated_messages"][found["message"]]["content"]
        assert content[found["start"] : found["end"]] == found["text"], "a mention that is not there"
