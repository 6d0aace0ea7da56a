"""What a catalog shows of its corpus is masked: by builds, and in catalogs of earlier builds by a command."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_catalogs import filling
from sqlalchemy import select
from typer.testing import CliRunner

from sae_runtime.build.features.describe import Description
from sae_runtime.build.publish import masked_description
from sae_runtime.catalog import masking
from sae_runtime.catalog.file import check_seal
from sae_runtime.catalog.masking import MASK, mask, mask_all, mask_catalog, word_pattern
from sae_runtime.catalog.store import open_catalog, seal_catalog
from sae_runtime.catalog.tables import FeatureExampleRow, FeatureRow
from sae_runtime.errors import CatalogError, InputError
from sae_runtime.redact import find_private
from ui.cli.app import app

LIGHT = settings(max_examples=300, deadline=None, derandomize=True, database=None)
PRIVATE = ("ann.lee@example.org", "ann+x@mail.example.co.uk", "+44 20 7946 0958", "(713) 853-3848", "650 - 847 - 2227",
           "4111 1111 1111 1111", "123456789", "password: hunter22", "sk-abcdefghijklmnop1234")  # fmt: skip
_PIECES = (*PRIVATE, "@", ".", " ", "\n", "-", "the bank", "1939", "1939-1945", "3.5", "a@b", "\u0660\u0661", "é", MASK)
texts = st.lists(st.sampled_from(_PIECES) | st.text(max_size=5), max_size=12).map("".join)


@LIGHT
@given(texts)
def test_masking_keeps_length_and_all_but_letters_and_digits(text: str) -> None:
    masked = mask(text)
    assert len(masked) == len(text)
    assert all(new == old or (new == MASK and old.isalnum()) for new, old in zip(masked, text, strict=True))


@LIGHT
@given(texts)
def test_masking_again_changes_nothing_and_nothing_private_is_left(text: str) -> None:
    masked = mask(text)
    assert mask(masked) == masked
    for found in find_private(masked):
        assert not any(char.isalnum() for char in masked[found.start : found.end])
    assert re.search(r"\w@\w", masked) is None


@LIGHT
@given(st.text(st.characters(exclude_categories=["Nd", "Cs"], exclude_characters="@"), max_size=19))
def test_short_text_without_digits_and_at_signs_stays(text: str) -> None:
    assert mask(text) == text or re.search(r"(?i)pass|pwd|key|secret|token|bearer|[srp]k|hf|gh|git|glpat|npm|pypi|xox|AKIA|ASIA|AIza|eyJ|-----", text)  # fmt: skip


@pytest.mark.parametrize("private", PRIVATE)
@given(before=st.sampled_from(["", "Call ", "\n"]), after=st.sampled_from(["", " now", ".\n"]))
@LIGHT
def test_each_kind_is_masked_wherever_it_stands(private: str, before: str, after: str) -> None:
    masked = mask(before + private + after)
    assert masked.startswith(before)
    assert masked.endswith(after)
    middle = masked[len(before) : len(masked) - len(after)]
    assert sum(char.isalnum() for char in middle) <= len("password")  # of "password: ..." the label stays


@pytest.mark.parametrize(
    "text",
    [
        "In 1939-1945 the bank lost $ 1,200,000.",
        "on 31.12.1999, at 3.14 or 2007-06-05",
        "pay @-@ per @-@ view",
        "chapter 12, verse 3",
    ],
)
def test_years_dates_amounts_and_the_signs_of_wikitext_stay(text: str) -> None:
    assert mask(text) == text


@pytest.mark.parametrize(
    ("cut_off", "masked"),
    [
        ("lee@example.org wrote", "•••@•••••••.••• wrote"),
        ("From : ann@", "From : •••@"),
        ("@example.org wrote", "@•••••••.••• wrote"),
        ("write to ann@exam", "write to •••@••••"),
        ("JavaMail.evans@thyme > Date", "••••••••.•••••@••••• > Date"),
    ],
)
def test_an_excerpt_may_cut_an_address(cut_off: str, masked: str) -> None:
    assert mask(cut_off) == masked


def test_texts_in_lists_and_dicts_are_masked_and_keys_and_numbers_stay() -> None:
    value = {"words": ["bank", "a@b.org"], "n": 5551234567, "none": None, "deep": [{"x": "call 5551234567"}]}
    masked = {"words": ["bank", "•@•.•••"], "n": 5551234567, "none": None, "deep": [{"x": "call ••••••••••"}]}
    assert mask_all(value) == masked


def test_a_build_publishes_masked_descriptions() -> None:
    context = {"text": "Write to ann@example.org now", "start": 9, "end": 12, "activation": 2.0}
    item = Description(
        3, label="ann@example.org", sentence="Fires on ann@example.org.", predicate={"words": ["ann@example.org"], "members": [1]},
        promoted=["5551234567"], density=0.5, contexts=[context],
    )  # fmt: skip
    masked = masked_description(item)
    assert "ann" not in json.dumps([masked.label, masked.sentence, masked.predicate, masked.promoted, masked.contexts])
    (shown,) = masked.contexts
    assert shown == {**context, "text": "Write to •••@•••••••.••• now"}
    assert shown["text"][shown["start"] : shown["end"]] == "•••"
    assert (masked.index, masked.density, masked.predicate["members"]) == (3, 0.5, [1])
    assert item.contexts == [context]


@pytest.fixture
def catalog(tmp_path: Path) -> Path:
    """Two features, one with an address in its texts."""
    path = tmp_path / "catalog.sqlite"
    with filling(path, d_sae=9) as (session, sae):
        rows = [FeatureExampleRow(text="mail ann@example.org", start=5, end=8, activation=1.0),
                FeatureExampleRow(text="the bank", start=4, end=8, activation=2.0)]  # fmt: skip
        session.add_all([
            FeatureRow(sae_id=sae.id, index=1, label="ann@example.org", description="the bank", promoted=["5551234567"],
                       predicate={"words": ["ann@example.org"]}, density=0.1, max_activation=1.0, examples=rows),
            FeatureRow(sae_id=sae.id, index=2, label="bank", density=0.1, max_activation=1.0),
        ])  # fmt: skip
    seal_catalog(path)
    return path


def rows_of(path: Path) -> list[tuple[object, ...]]:
    with open_catalog(path) as session:
        features = [
            (row.index, row.label, row.description, row.predicate, row.promoted)
            for row in session.scalars(select(FeatureRow).order_by(FeatureRow.index))
        ]
        return features + [(row.text, row.start, row.end) for row in session.scalars(select(FeatureExampleRow))]


def test_a_catalog_is_masked_in_place_and_no_trace_is_left_in_the_file(catalog: Path) -> None:
    assert mask_catalog(catalog) == 4
    assert rows_of(catalog) == [
        (1, "•••@•••••••.•••", "the bank", {"words": ["•••@•••••••.•••"]}, ["••••••••••"]),
        (2, "bank", "", {}, []),
        ("mail •••@•••••••.•••", 5, 8),
        ("the bank", 4, 8),
    ]
    content = catalog.read_bytes()
    assert b"ann" not in content
    assert b"5551234567" not in content
    assert [path.name for path in catalog.parent.iterdir()] == [catalog.name]
    check_seal(catalog)
    assert mask_catalog(catalog) == 0


def test_masking_that_is_interrupted_changes_nothing(catalog: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, count = rows_of(catalog), 0

    def fail_late(text: str, words: object) -> str:
        nonlocal count
        count += 1
        if count == 3:  # the examples are masked by then
            raise KeyboardInterrupt
        return mask(text)

    monkeypatch.setattr(masking, "mask", fail_late)
    with pytest.raises(KeyboardInterrupt):
        mask_catalog(catalog)
    monkeypatch.undo()
    assert rows_of(catalog) == before
    assert mask_catalog(catalog) == 4


def test_masking_makes_no_catalog_where_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="There is no catalog"):
        mask_catalog(tmp_path / "absent.sqlite")
    (tmp_path / "text.sqlite").write_text("no database" * 100, "utf-8")
    with pytest.raises(CatalogError):
        mask_catalog(tmp_path / "text.sqlite")
    assert [path.name for path in tmp_path.iterdir()] == ["text.sqlite"]


def test_words_that_a_deployer_names_are_masked_where_they_stand_alone(catalog: Path, tmp_path: Path) -> None:
    pattern = word_pattern(["Bank", "river bank", " "])
    assert mask("The BANK, the embankment; a River Bank.", pattern) == "The ••••, the embankment; a ••••• ••••."
    assert word_pattern([" "]) is None
    words = tmp_path / "words.txt"
    words.write_text("# coarse\nbank\n\n", "utf-8")
    assert CliRunner().invoke(app, ["db", "mask", str(catalog), "--words", str(words)]).exit_code == 0
    assert b"bank" not in catalog.read_bytes().lower().replace(b"embank", b"")
    assert mask_catalog(catalog, ["bank"]) == 0
    words.write_bytes(b"\xff")
    refused = CliRunner().invoke(app, ["db", "mask", str(catalog), "--words", str(words)])
    assert refused.exit_code != 0
    assert isinstance(refused.exception, InputError) or "cannot be read" in refused.output


def test_the_command_says_how_much_was_masked(catalog: Path) -> None:
    result = CliRunner().invoke(app, ["db", "mask", str(catalog)])
    assert (result.exit_code, result.stdout) == (0, f"{catalog}: 4 texts were masked\n")
