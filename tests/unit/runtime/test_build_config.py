"""Build configurations: the packaged ones load, and whatever is wrong with one is an error that names it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from yaml_trouble import BOMB, ODD_YAML

from sae_runtime.build.config import load_config
from sae_runtime.errors import InputError
from sae_runtime.models.manifest import SMALL_MODEL


def test_a_configuration_that_is_written_out_is_read_as_the_same(tmp_path: Path) -> None:
    config = load_config(SMALL_MODEL)
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")), "utf-8")
    assert load_config(str(path)) == config.model_copy(update={"source": str(path)})


def test_a_wrong_field_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    config = load_config(SMALL_MODEL).model_dump(mode="json")
    config["train"]["k"] = 0
    config["corpus"]["colour"] = "red"
    path.write_text(yaml.safe_dump(config), "utf-8")
    with pytest.raises(InputError) as caught:
        load_config(str(path))
    assert [
        word for word in ("mine.yaml", "train", "k must be", "corpus.colour") if word not in caught.value.message
    ] == []


@pytest.mark.parametrize("value", ODD_YAML)
def test_values_on_which_the_yaml_library_stumbles_are_refused(tmp_path: Path, value: str) -> None:
    """Found by fuzzing."""
    path = tmp_path / "mine.yaml"
    path.write_text(f"model: {value}\n", "utf-8")
    with pytest.raises(InputError, match=r"mine\.yaml"):
        load_config(str(path))


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    """Found by fuzzing."""
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"model: \xff\xfe")
    with pytest.raises(InputError, match=r"mine\.yaml"):
        load_config(str(path))


@pytest.mark.parametrize(
    "name", ["x" * 5000, "a\x00b", "", ".", "\ud83c"], ids=["long", "nul", "empty", "folder", "half"]
)
def test_what_cannot_be_a_file_s_name_is_no_configuration(name: str) -> None:
    """Found by fuzzing: the system's refusal of a long name went through."""
    with pytest.raises(InputError, match="no build configuration"):
        load_config(name)


def test_a_few_lines_that_stand_for_a_billion_items_are_refused_at_once(tmp_path: Path) -> None:
    """The error must not write them out."""
    path = tmp_path / "mine.yaml"
    path.write_text(BOMB + "model: *a8\n", "utf-8")
    with pytest.raises(InputError, match=r"mine\.yaml") as caught:
        load_config(str(path))
    assert len(caught.value.message) < 10_000


@pytest.mark.parametrize("field", ["harvest_engine", "layer", "corpus", "train", "sources", "kind", "nested_widths"])
def test_no_field_writes_them_out(tmp_path: Path, field: str) -> None:
    """Found by fuzzing: a choice among names was compared with all that the value stands for, which took hours."""
    config = load_config(SMALL_MODEL).model_dump(mode="json")
    holder = {"sources": config["corpus"], "kind": config["corpus"]["sources"][0], "nested_widths": config["train"]}
    holder.get(field, config)[field] = "BOMB"
    path = tmp_path / "mine.yaml"
    path.write_text(BOMB + yaml.safe_dump(config).replace("BOMB", "*a8"), "utf-8")
    with pytest.raises(InputError, match=r"mine\.yaml"):
        load_config(str(path))
