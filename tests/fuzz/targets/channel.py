"""Whatever arrives at the API server's end is a usable reading, an EngineError or nothing, and the next reading arrives."""

from __future__ import annotations

import asyncio
import atexit
import json
import uuid
from functools import cache
from typing import Any

import numpy as np
import torch
import zmq
from hypothesis import strategies as st
from safetensors.numpy import save as save_arrays
from safetensors.torch import save

from sae_runtime.engines.features import PromptFeatures
from sae_runtime.engines.vllm.channel import ERROR, FEATURES, RESIDUAL, Inbox, Outbox
from sae_runtime.errors import EngineError

from ..damage import ByteEdit, DocumentEdit, byte_edits, damaged, document_edits, edited

Array = tuple[str, str, list[int], int]  # name, type, values, rows (0: one dimension)
Frame = tuple[str, list[ByteEdit], list[DocumentEdit], list[Array]]
Case = list[tuple[str, bytes, Frame, int]]

_TYPES = {
    "bool": np.bool_,
    "int32": np.int32,
    "int64": np.int64,
    "uint8": np.uint8,
    "float32": np.float32,
    "float64": np.float64,
}
_values = st.integers(-2, 9) | st.sampled_from([2**31 - 1, -(2**31), 40])
_arrays: st.SearchStrategy[list[Array]] = st.lists(
    st.tuples(
        st.sampled_from(["content", "positions", "latents", "values", "more", "residual"]),
        st.sampled_from(sorted(_TYPES)),
        st.lists(_values, max_size=5),
        st.sampled_from([0, 0, 0, 1, 2]),
    ),
    min_size=1,
    max_size=2,
)
_bodies = st.sampled_from(["features", "features", "residual", "empty", "text"])
_frames: st.SearchStrategy[Frame] = st.one_of(
    st.tuples(_bodies, st.just([]) | byte_edits(3), st.just([]) | document_edits(2), st.just([])),
    st.tuples(_bodies, st.just([]), st.just([]), _arrays),
)
CASES: st.SearchStrategy[Case] = st.lists(
    st.tuples(
        st.sampled_from(["expected", "expected", "unknown"]),
        st.sampled_from([FEATURES, RESIDUAL, ERROR]) | st.binary(max_size=6),
        _frames,
        st.sampled_from([3, 3, 3, 3, 1, 2, 4]),
    ),
    min_size=1,
    max_size=3,
)
_TOKENS = 4
_FEATURES = PromptFeatures(
    content=np.arange(_TOKENS) > 0,
    positions=np.array([1, 2, 3], dtype=np.int32),
    latents=np.array([40, 7, 7], dtype=np.int32),
    values=np.array([1.5, 0.25, 2.0], dtype=np.float32),
)
_BODIES = {
    "features": _FEATURES.to_bytes(),
    "residual": save({"residual": torch.ones(_TOKENS, 3, dtype=torch.bfloat16)}),
    "empty": b"",
    "text": b"No hidden states.",
}
_PATIENCE = 20.0  # seconds; only a broken inbox waits that long


class _Line:
    """Both ends in one event loop, for the whole process."""

    def __init__(self) -> None:
        self.runner = asyncio.Runner()
        self.runner.run(self._open())
        atexit.register(self._close)

    async def _open(self) -> None:
        name = uuid.uuid4().hex
        self.inbox = Inbox(name)
        self.outbox = Outbox(name)
        self.socket = self.outbox._socket(self.inbox.reply)

    def _close(self) -> None:
        self.runner.run(self.inbox.close())
        self.outbox.close()
        self.runner.close()


@cache
def _line() -> _Line:
    return _Line()


def check(case: Case) -> None:
    """See the module."""
    line = _line()
    line.runner.run(_exchange(line, case))


async def _exchange(line: _Line, case: Case) -> None:
    async with line.inbox.expect() as (ticket, future), line.inbox.expect() as (last, after):
        for whose, kind, (body, byte_changes, edits, arrays), parts in case:
            name = ticket if whose == "expected" else uuid.uuid4().hex
            payload = _with_arrays(arrays) if arrays else damaged(_with_header(_BODIES[body], edits), byte_changes)
            frames = [name.encode(), kind, payload, b"more"][:parts]
            line.socket.send_multipart(frames, flags=zmq.NOBLOCK)
        line.outbox.send(line.inbox.reply, last, _FEATURES)
        assert isinstance(await asyncio.wait_for(after, _PATIENCE), PromptFeatures), "the next reading is another one"
        if future.done():
            try:
                result = future.result()
            except EngineError:
                return
            _usable(result)
    assert line.inbox.waiting == 0


def _with_arrays(arrays: list[Array]) -> bytes:
    """The features with other arrays in place of some of theirs, or beside them."""
    changed: dict[str, Any] = dict(vars(_FEATURES))
    for name, kind, numbers, rows in arrays:
        array = np.array(numbers, dtype=np.int64).astype(_TYPES[kind])
        changed[name] = array.reshape(rows, -1) if rows and array.size % rows == 0 else array
    return save_arrays(changed)


def _with_header(data: bytes, edits: list[DocumentEdit]) -> bytes:
    """A safetensors file with an edited header; other bytes as they are."""
    length = int.from_bytes(data[:8], "little")
    if not edits or length > len(data):
        return data
    try:
        header = json.dumps(edited(json.loads(data[8 : 8 + length]), edits)).encode()
    except ValueError:
        return data
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


def _usable(result: Any) -> None:
    """What is done with a reading next does not fail."""
    if isinstance(result, torch.Tensor):
        return
    assert isinstance(result, PromptFeatures)
    if len(result) != _TOKENS:  # the detector compares this with its prompt, and refuses
        return
    assert len(result.strongest(6)) == _TOKENS
    assert result.pooled(range(1, _TOKENS), 64).shape[0] >= 64
    wanted = np.array([7, 40], dtype=np.int64)
    np.testing.assert_allclose(
        result.pooled_at(range(1, _TOKENS), wanted), result.pooled(range(1, _TOKENS), 64)[wanted], equal_nan=True
    )
    assert (result.positions[:-1] <= result.positions[1:]).all() and (result.latents >= 0).all()
