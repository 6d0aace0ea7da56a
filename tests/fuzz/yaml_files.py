"""YAML files that were whole once: edited as documents, then as text, with snippets that YAML reads in odd ways."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import yaml
from hypothesis import strategies as st

from .damage import ByteEdit, DocumentEdit, byte_edits, damaged, document_edits, edited

SNIPPETS = (
    "2001-99-99", "!!int x", "!!float x", "!!bool x", "!!timestamp x", "!!binary x", "!!null x", "!!set {a}", "!!omap x",
    "!!python/object/apply:os.getcwd []", "&a [*a]", "*a", "&a {b: *a}", "<<: *a", "<<: [1]", "? [a]", "{[1]: 2}", "? {a: 1}\n: 2",
    "1" * 5000, "0b", "0o9", "0x", "1_0", "1:2:3", ".inf", ".nan", "~", "---", "...", "%YAML 9.9\n---", "# ", "|\n  a", ">", "'",
    '"\\ud800"', '"\\U00110000"', '"\\x00"', "\ufeff", "\x00", "\x85", "\t- a", "\n", "\n  ", "[" * 40, "{" * 40, "- " * 40,
    "[&a [x, x, x, x, x, x, x, x], " + ", ".join(
        f"&{new} [*{old}, *{old}, *{old}, *{old}, *{old}, *{old}, *{old}, *{old}]" for old, new in pairwise("abcdefghij")
    ) + "]",
    "[" * 3000, "{a: " * 3000, "- " * 3000, ": ", ", ", "! ", "!<tag:yaml.org,2002:int> a", "concept: bank\n", "terms: []\n",
)  # fmt: skip

Case = tuple[list[DocumentEdit], list[tuple[int, str]], list[ByteEdit]]

CASES: st.SearchStrategy[Case] = st.one_of(
    st.tuples(document_edits(), st.just([]), st.just([])),
    st.tuples(
        document_edits(1),
        st.lists(st.tuples(st.integers(0, 2**16), st.sampled_from(SNIPPETS)), max_size=2),
        st.just([]),
    ),
    st.tuples(document_edits(1), st.just([]), byte_edits(3)),
)


def content(document: Any, case: Case) -> bytes:
    """The file that ``case`` makes of ``document``."""
    edits, snippets, bytes_edits = case
    text = yaml.safe_dump(edited(document, edits), allow_unicode=True, sort_keys=False, width=200)
    for place, snippet in snippets:
        # Where a value begins, or anywhere.
        starts = [at + 2 for at in range(len(text)) if text.startswith(": ", at)]
        at = starts[place // 2 % len(starts)] if place % 2 and starts else place % (len(text) + 1)
        end = text.find("\n", at) if place % 2 and starts else at
        text = text[:at] + snippet + text[max(end, at) :]
    return damaged(text.encode("utf-8", "surrogatepass"), bytes_edits)
