"""Model fingerprints: alike for the same model, different for anything that changes its activations."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sae_runtime.errors import ModelError
from sae_runtime.models import ModelFingerprint, fingerprint_model

CONFIG = {
    "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "rope_theta": 10_000.0,
    "torch_dtype": "float32",
}  # fmt: skip
STRETCHED_ROPE = {"rope_theta": 10_000.0, "rope_type": "linear", "factor": 4.0}


@pytest.fixture(scope="module")
def original(tokenizer_folder: Callable[..., Path]) -> Path:
    folder = tokenizer_folder()
    tensors = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(4, dtype=torch.bfloat16), "c": torch.tensor(2.0)}
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG), "utf-8")
    return folder


@pytest.fixture
def model(original: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(original, tmp_path / "model"))


def configure(folder: Path, **changes: Any) -> None:
    (folder / "config.json").write_text(json.dumps(CONFIG | changes), "utf-8")


def change_template(folder: Path) -> None:
    path = folder / "chat_template.jinja"
    path.write_text(path.read_text("utf-8") + "!", "utf-8")


def change_weights(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["a"][1, 2] += 1
    save_file(tensors, folder / "model.safetensors")


def change_tokenizer(folder: Path) -> None:
    path = folder / "tokenizer.json"
    data = json.loads(path.read_text("utf-8"))
    vocabulary = data["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    path.write_text(json.dumps(data), "utf-8")


def drop_merges(folder: Path) -> None:
    path = folder / "tokenizer.json"
    data = json.loads(path.read_text("utf-8"))
    data["model"]["merges"] = []
    path.write_text(json.dumps(data), "utf-8")


def test_a_fingerprint_has_four_short_parts_and_is_stable(model: Path, original: Path) -> None:
    found = fingerprint_model(model)
    assert all(len(part) == 16 for part in found.model_dump().values())
    assert found == fingerprint_model(model) == fingerprint_model(original)
    assert found.differences(fingerprint_model(original)) == []


def test_the_split_into_files_and_their_order_do_not_matter(model: Path, original: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    save_file({"c": tensors["c"], "b": tensors["b"]}, model / "model-1.safetensors")
    save_file({"a": tensors["a"]}, model / "model-2.safetensors")
    assert fingerprint_model(model) == fingerprint_model(original)


def test_settings_without_influence_do_not_matter(model: Path, original: Path) -> None:
    configure(model, transformers_version="9.9", torch_dtype="bfloat16", use_cache=False)
    assert fingerprint_model(model).config == fingerprint_model(original).config


def test_both_spellings_of_the_rope_base_are_the_same(model: Path, original: Path) -> None:
    configure(model, rope_theta=None, rope_parameters={"rope_theta": 10_000.0, "rope_type": "default"})
    assert fingerprint_model(model).config == fingerprint_model(original).config


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (change_weights, "weights"),
        (change_tokenizer, "tokenizer"),
        (drop_merges, "tokenizer"),
        (change_template, "chat_template"),
        (lambda folder: configure(folder, num_attention_heads=8), "config"),
        (lambda folder: configure(folder, rope_theta=5.0), "config"),
        (lambda folder: configure(folder, rope_parameters=STRETCHED_ROPE), "config"),
    ],
    ids=["weights", "vocabulary", "merges", "template", "heads", "rope base", "rope scaling"],
)  # fmt: skip
def test_what_changes_activations_changes_its_part_alone(
    model: Path, original: Path, change: Callable[[Path], None], part: str
) -> None:
    change(model)
    assert fingerprint_model(original).differences(fingerprint_model(model)) == [part]


@pytest.mark.parametrize(
    ("change", "part"),
    [(change_weights, "weights"), (change_tokenizer, "tokenizer"), (change_template, "chat_template"),
     (lambda folder: configure(folder, hidden_size=128), "config")],
    ids=["weights", "tokenizer", "template", "config"],
)  # fmt: skip
def test_a_change_after_the_first_reading_is_noticed(model: Path, change: Callable[[Path], None], part: str) -> None:
    """The cached result must not outlive a change to any file that it was computed from."""
    before = fingerprint_model(model)
    change(model)
    stat = (model / "model.safetensors").stat()
    if part == "weights":  # a clock too coarse to tell the two writes apart would hide the change
        os.utime(model / "model.safetensors", ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000))
    assert before.differences(fingerprint_model(model)) == [part]


def test_differences_name_the_parts() -> None:
    first = ModelFingerprint(weights="1", config="2", tokenizer="3", chat_template="4")
    second = ModelFingerprint(weights="1", config="x", tokenizer="3", chat_template="y")
    assert first.differences(second) == ["config", "chat_template"]


def test_a_folder_without_safetensors_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ModelError, match="no safetensors weights") as caught:
        fingerprint_model(tmp_path)
    assert caught.value.remedy


@pytest.mark.parametrize("damaged", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_damaged_file_is_a_model_error(model: Path, damaged: str) -> None:
    (model / damaged).write_bytes(b"\x00 damaged")
    with pytest.raises(ModelError, match="is damaged") as caught:
        fingerprint_model(model)
    assert caught.value.remedy
