"""One ``--model`` value: built-in names, folders, hub ids, and what is said when none fits. No network is used."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from huggingface_hub import constants

from sae_runtime.errors import ModelError
from sae_runtime.models import DEFAULT_MODEL, ResolvedModel, builtin_manifests, builtin_names, resolve_model
from sae_runtime.models.manifest import SMALL_MODEL
from sae_runtime.paths import models_dir


@pytest.fixture(autouse=True)
def no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The hub is offline and its cache empty."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


def model_folder(path: Path) -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text("{}", "utf-8")
    return path


@pytest.mark.parametrize("value", ["nonesuch", "a/b/c", "./nonesuch/model", "/nonesuch/model", "~/nonesuch/model"])
def test_an_unknown_model_is_refused_with_the_choices(value: str) -> None:
    with pytest.raises(ModelError, match="Unknown model") as caught:
        resolve_model(value)
    assert value in caught.value.message
    assert all(name in caught.value.remedy for name in builtin_names())


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no config\.json") as caught:
        resolve_model(str(tmp_path))
    assert str(tmp_path) in caught.value.message
    assert caught.value.remedy


def test_a_folder_is_used_as_it_is_and_named_after_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = model_folder(tmp_path / "my-model")
    assert resolve_model(str(folder)) == ResolvedModel("my-model", folder)
    monkeypatch.chdir(tmp_path)
    assert resolve_model("my-model") == resolve_model("./my-model") == ResolvedModel("my-model", folder)


def test_a_converted_folder_keeps_the_name_of_the_built_in_model(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "copy")
    (folder / "sensecheck_origin.json").write_text(json.dumps({"name": SMALL_MODEL}), "utf-8")
    assert resolve_model(str(folder)).name == SMALL_MODEL


def test_a_built_in_model_that_is_ready_is_not_fetched_again() -> None:
    folder = model_folder(models_dir() / SMALL_MODEL)
    assert resolve_model(SMALL_MODEL) == ResolvedModel(SMALL_MODEL, folder)


def test_an_absent_built_in_model_is_refused_without_fetching() -> None:
    with pytest.raises(ModelError, match="not on this machine") as caught:
        resolve_model(DEFAULT_MODEL, fetch=False)
    assert caught.value.remedy == f"Run `sensecheck model fetch {DEFAULT_MODEL}`."


@pytest.mark.parametrize("fetch", [False, True])
def test_a_hub_model_that_cannot_be_read_is_refused(fetch: bool) -> None:
    with pytest.raises(ModelError, match="hub model 'owner/nonesuch' cannot be read") as caught:
        resolve_model("owner/nonesuch", fetch=fetch)
    assert caught.value.remedy


def test_a_malformed_hub_id_is_refused() -> None:
    with pytest.raises(ModelError, match="cannot be read"):
        resolve_model("owner/not allowed!")


def test_built_in_models_are_listed_default_first_with_sound_manifests() -> None:
    assert builtin_names()[0] == DEFAULT_MODEL
    assert SMALL_MODEL in builtin_names()
    for name, manifest in builtin_manifests().items():
        assert manifest.name == name
        assert manifest.gguf_bytes > 10_000_000
        assert manifest.licence and manifest.notice and manifest.sources
