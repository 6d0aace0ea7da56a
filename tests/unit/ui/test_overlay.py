"""Own words on disk: one private YAML file per user that is a glossary like any other."""

from __future__ import annotations

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from sae_runtime.errors import InputError
from sae_runtime.glossary import Glossary, Term
from sae_runtime.glossary.terms import MAX_TERMS
from ui.words.overlay import Overlay


def term(word: str = "churn", **fields: Any) -> Term:
    return Term.model_validate({"term": word, "meaning": "customers who leave", "otherwise": "stirring milk", **fields})


@pytest.fixture
def overlay(tmp_path: Path) -> Overlay:
    return Overlay.at(tmp_path / "own", None)


FULL = term(
    forms=["churned"],
    note='"{mention}" is about customers.',
    examples=["Our churn: 4 % – “too high” # not a comment", "yes: churn"],
    counterexamples=["- Churn the\tmilk & <b>cream</b>."],
)


def test_nothing_saved_is_no_glossary_and_no_file(overlay: Overlay) -> None:
    assert overlay.terms() is None
    assert overlay.as_yaml() == ""
    assert not overlay.path.exists()


def test_a_saved_term_comes_back_as_it_was(overlay: Overlay) -> None:
    overlay.add(FULL)
    assert overlay.terms() == Glossary(terms=[FULL])


@pytest.mark.parametrize(
    "word", ["no", "2024", "terms", "null", "né: x", "{mention}", "a\u0085b", "a\u2028b", "\ufeffx", "x\x07y"]
)
def test_words_that_mean_something_to_yaml_survive(overlay: Overlay, word: str) -> None:
    overlay.add(term(word, meaning="~ off", otherwise=["- 1", "2020-99-99"]))
    assert overlay.terms() == Glossary(terms=[term(word, meaning="~ off", otherwise=["- 1", "2020-99-99"])])


def test_the_file_and_the_export_are_glossaries(overlay: Overlay, tmp_path: Path) -> None:
    overlay.add(FULL)
    glossary = overlay.add(term("lead", otherwise="a metal"))
    exported = tmp_path / "exported.yaml"
    exported.write_text(overlay.as_yaml(), "utf-8")
    assert Glossary.from_yaml(overlay.path) == Glossary.from_yaml(exported) == glossary
    assert overlay.as_yaml() == overlay.path.read_text("utf-8")


def test_the_export_leaves_out_what_is_empty(overlay: Overlay) -> None:
    overlay.add(term())
    assert overlay.as_yaml() == "churn:\n  meaning: customers who leave\n  otherwise:\n  - stirring milk\n"


def test_a_term_replaces_the_one_of_the_same_slug(overlay: Overlay) -> None:
    overlay.add(term())
    changed = term("Churn", meaning="accounts that are closed")
    assert overlay.add(changed).terms == [changed]
    assert overlay.terms() == Glossary(terms=[changed])


def test_a_removed_term_is_gone_and_others_stay(overlay: Overlay) -> None:
    overlay.add(term())
    overlay.add(term("lead"))
    assert overlay.remove(term().slug)
    assert overlay.terms() == Glossary(terms=[term("lead")])
    assert not overlay.remove(term().slug)


def test_the_file_goes_with_its_last_term(overlay: Overlay) -> None:
    overlay.add(term())
    assert overlay.remove(term().slug)
    assert overlay.terms() is None
    assert list(overlay.path.parent.iterdir()) == []


def test_two_terms_that_share_a_form_are_refused_and_the_file_stays(overlay: Overlay) -> None:
    overlay.add(term())
    with pytest.raises(InputError, match="'churn' belongs to both 'churn' and 'attrition'"):
        overlay.add(term("attrition", forms=["churn"]))
    assert overlay.terms() == Glossary(terms=[term()])


def test_the_limit_is_a_glossarys_own_and_counts_no_replacement(overlay: Overlay) -> None:
    for number in range(MAX_TERMS):
        overlay.add(term(f"word {number}"))
    overlay.add(term("word 0", meaning="something else"))
    with pytest.raises(InputError, match=str(MAX_TERMS)) as caught:
        overlay.add(term("one more"))
    assert "Remove" in caught.value.remedy
    found = overlay.terms()
    assert found is not None and len(found.terms) == MAX_TERMS


@pytest.mark.parametrize(
    "damage", [b"", b"[1, 2]", b"churn: {", b"churn: nothing else", b"\xff\xfe\x00", b"churn: {meaning: 2020-99-99}"]
)
def test_a_damaged_file_is_named_with_a_remedy_and_never_overwritten(overlay: Overlay, damage: bytes) -> None:
    overlay.path.parent.mkdir()
    overlay.path.write_bytes(damage)
    for use in (overlay.terms, overlay.as_yaml, lambda: overlay.add(term()), lambda: overlay.remove("glossary:churn")):
        with pytest.raises(InputError) as caught:
            use()
        assert str(overlay.path) in caught.value.message
        assert "Repair it" in caught.value.remedy
    assert overlay.path.read_bytes() == damage


def test_users_have_files_of_their_own_inside_the_folder(tmp_path: Path) -> None:
    users = ["ada", "Ada", "../../etc/passwd", "", "local", "x" * 500, None]
    paths = [Overlay.at(tmp_path, user).path for user in users]
    assert len(set(paths)) == len(users)
    assert all(path.parent == tmp_path and "ada" not in path.name.lower() for path in paths)
    Overlay.at(tmp_path, "ada").add(term())
    assert Overlay.at(tmp_path, "ben").terms() is None


def test_only_the_owner_can_read_the_file(overlay: Overlay) -> None:
    overlay.add(term())
    overlay.add(term("lead"))
    assert stat.S_IMODE(overlay.path.stat().st_mode) == 0o600
    assert [path.name for path in overlay.path.parent.iterdir()] == ["local.yaml"]  # no temporary file is left


def test_a_folder_that_cannot_be_made_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot be written"):
        Overlay.at(tmp_path / "file", None).add(term())


def test_a_failed_write_keeps_the_old_file(overlay: Overlay, monkeypatch: pytest.MonkeyPatch) -> None:
    overlay.add(term())

    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(InputError, match="No space left"):
        overlay.add(term("lead"))
    assert overlay.terms() == Glossary(terms=[term()])
    assert [path.name for path in overlay.path.parent.iterdir()] == ["local.yaml"]


def test_words_saved_at_once_are_all_kept(overlay: Overlay) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: overlay.add(term(f"word {number}")), range(16)))
    found = overlay.terms()
    assert found is not None and len(found.terms) == 16
