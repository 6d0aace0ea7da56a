"""What a server answers is a reading or one of our errors; so is what it says it reads with, whatever bytes it sends."""

from __future__ import annotations

import json
from typing import Any

import httpx
from hypothesis import strategies as st

from middleware.sources.server import ServerSource, _parse
from sae_runtime.detector import Reading
from sae_runtime.errors import SensecheckError

from ..damage import ByteEdit, DocumentEdit, byte_edits, damaged, document_edits, edited

Case = tuple[int, str, list[DocumentEdit], list[ByteEdit]]

_statuses = st.sampled_from([200, 200, 200, 201, 204, 302, 400, 404, 413, 422, 429, 500, 503]) | st.integers(100, 599)
_kinds = st.sampled_from(["reading", "error", "health", "nested", "nothing"])
CASES: st.SearchStrategy[Case] = st.tuples(
    _statuses, _kinds, document_edits(3), st.just([]) | byte_edits(3)
)  # fmt: skip

_PLACE = {"concept": "bank", "text": "bank", "message": 0, "start": 0, "end": 4}
_FEATURE = {"index": 7, "label": "rivers", "activation": 1.5}
_NESTED = b"[" * 100_000  # deeper than Python reads
_ANSWERS: dict[str, Any] = {
    "reading": {
        "model": "tiny",
        "mentions": [{**_PLACE, "reading": {"a": 0.9, "b": 0.1}, "intended": {"a": 0.0, "b": 1.0}}],
        "misreads": [
            {**_PLACE, "read_as": "a", "intended": "b", "p_read_as": 0.9, "p_intended": 1.0, "evidence": ["cue"],
             "note": "A note.", "features": [_FEATURE]},
        ],
        "tokens": [{"text": "bank", "message": 0, "start": 0, "end": 4, "features": [_FEATURE]}],
        "truncated": False,
        "timings_ms": {"total": 1.0},
        "annotated_messages": [{"role": "user", "content": "bank"}],
    },
    "error": {"error": {"message": "Too long.", "type": "sensecheck", "code": 422}},
    "health": {"status": "ok", "fingerprints": {"weights": "w", "sae": "s"}},
    "nothing": None,
}  # fmt: skip


class _Expecting(ServerSource):
    """A source that expects artefacts of which it needs no catalog."""

    def __init__(self) -> None:
        super().__init__("http://127.0.0.1:1")
        self._expected = type("View", (), {"fingerprints": {"weights": "w", "sae": "s"}})()  # type: ignore[assignment]


def check(case: Case) -> None:
    """See the module."""
    status, kind, edits, byte_changes = case
    whole = _NESTED if kind == "nested" else json.dumps(edited(_ANSWERS[kind], edits)).encode()
    content = damaged(whole, byte_changes)
    try:
        reading = _parse(status, content)
    except SensecheckError as error:
        assert error.message and error.remedy, "an error without remedy"
    else:
        assert 200 <= status < 300, "a refusal is taken for a reading"
        assert Reading.model_validate_json(reading.model_dump_json()) == reading
    source = _Expecting()
    try:
        source._check(httpx.Response(status, content=content))
    except SensecheckError:
        assert source._expected is not None
    else:
        found = dict(json.loads(content)["fingerprints"])
        assert found["weights"] == "w" and found["sae"] == "s", "another server's artefacts are accepted"
