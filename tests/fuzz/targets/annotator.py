"""An annotator raises only our errors, and with fail-open only InputError; whatever its source reads, the prompt is whole."""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import strategies as st

from middleware import SAEAnnotator
from middleware.inputs import plain_text, to_messages
from middleware.scope import CALL_OPTIONS, PREFIX
from middleware.testing import FakeInspector
from middleware.types import Placement
from sae_runtime.detector.results import Misread, Reading
from sae_runtime.errors import InputError, SensecheckError

from ..conversations import built, inputs
from ..texts import documents, texts

Case = tuple[Any, Placement, dict[str, Any], list[tuple[int, int, int, str]], bool]

_names = [spec.id for spec in CALL_OPTIONS]
_options = st.dictionaries(
    st.sampled_from(_names),
    documents()
    | st.sampled_from([["bank"], {"bank": "river"}, "finance", {"bank": {"meaning": "a river", "otherwise": "x"}}]),
    max_size=2,
)
_offsets = st.integers(-3, 60) | st.sampled_from([-(2**31), 2**31])
CASES: st.SearchStrategy[Case] = st.tuples(
    inputs,
    st.sampled_from(["after", "inline", "system"]),
    st.just({}) | _options,
    st.lists(st.tuples(st.integers(-2, 4), _offsets, _offsets, texts(2)), max_size=3),
    st.booleans(),
)


class _Source(FakeInspector):
    """Reads what it is told, which need not fit the prompt; a broken or hostile server can do the same."""

    def __init__(self, spans: list[tuple[int, int, int, str]]) -> None:
        super().__init__()
        self._misreads_told = [
            Misread(
                concept="c", text="x", message=message, start=start, end=end, read_as="a", intended="b",
                p_read_as=0.9, p_intended=0.9, evidence=[], note=note, features=[],
            )
            for message, start, end, note in spans
        ]  # fmt: skip

    def _reading(self, request: Any) -> Reading:
        return Reading(model="fake", mentions=[], misreads=self._misreads_told, tokens=[], truncated=False)


def check(case: Case) -> None:
    """See the module."""
    described, placement, options, spans, strict = case
    value = built(described)
    untouched = copy.deepcopy(value)
    annotator = SAEAnnotator(source=_Source(spans), placement=placement, on_error="raise" if strict else "pass")
    try:
        messages = annotator.invoke(value, config={"configurable": options})
    except SensecheckError as error:
        assert error.message
        assert strict or not _readable(value), "a readable input was refused"
        return
    assert value == untouched, "the input was changed"
    before, after = to_messages(value), list(messages)
    if len(after) == len(before) + 1:
        del after[0]
    assert len(after) == len(before), "messages came or went"
    for new, old in zip(after, before, strict=True):
        assert _subsequence(plain_text(old), plain_text(new)), "a part of the prompt is lost"
    stats = annotator.stats
    assert stats.inspected + sum(stats.bypassed.values()) == 1, "neither read nor counted as a bypass"


def _readable(value: Any) -> bool:
    """Whether it is a chat model's input at all; others are refused in any case."""
    try:
        to_messages(value)
    except InputError:
        return False
    return True


def _subsequence(short: str, long: str) -> bool:
    rest = iter(long)
    return all(char in rest for char in short)


assert all(name.startswith(PREFIX) for name in _names)
