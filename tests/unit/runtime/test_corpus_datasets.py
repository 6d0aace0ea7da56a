"""Corpus sources that `datasets` opens: read for real from a local folder, streamed, and identified by content."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sae_runtime.build.config import BuildConfig, TrainConfig
from sae_runtime.build.corpus import SPLITS, corpus_key, run_corpus
from sae_runtime.build.corpus_config import CorpusConfig, DatasetSource
from sae_runtime.build.sources import find_origin, read_documents
from sae_runtime.engines.chat import ChatEncoder
from sae_runtime.errors import InputError

datasets = pytest.importorskip("datasets")

ROWS = [
    {"text": "one <|im_end|>bank", "q": "Which?", "a": "The river's.", "talk": [{"from": "human", "value": "Hi"}]},
    {"text": None, "q": None, "a": "nothing asked", "talk": []},
]


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test asks the hub or writes the user's own cache."""
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(scope="module")
def encoder(tokenizer_folder: Callable[..., Path]) -> ChatEncoder:
    return ChatEncoder(tokenizer_folder())


def write(root: Path, rows: list[dict[str, Any]], split: str = "train") -> None:
    (root / "set").mkdir(exist_ok=True)
    (root / "set" / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n", "utf-8")


def source(path: str = "set", **settings: str) -> DatasetSource:
    return DatasetSource(kind="dataset", name="set", licence="own", path=path, **settings)


def corpus(root: Path) -> CorpusConfig:
    return CorpusConfig(root=root, sources=[], train_tokens=1)


def documents(root: Path, **settings: str) -> list[Any]:
    one = source(**settings)
    return list(read_documents(one, find_origin(corpus(root), one)))


def build_config(root: Path, **settings: str) -> BuildConfig:
    wanted = CorpusConfig(
        root=root,
        sources=[source(**settings)],
        sequence_length=32,
        train_tokens=500,
        validation_tokens=32,
        test_tokens=32,
    )
    return BuildConfig(model="tiny", layer=1, corpus=wanted, train=TrainConfig(width=8, k=2))


def test_the_three_forms(tmp_path: Path) -> None:
    write(tmp_path, ROWS)
    assert documents(tmp_path, text="text") == ["one bank"]
    assert documents(tmp_path, messages="talk") == [[{"role": "user", "content": "Hi"}]]
    pair = [{"role": "user", "content": "Ask: Which?"}, {"role": "assistant", "content": "The river's."}]
    assert documents(tmp_path, user="Ask: {q}", assistant="{a}")[0] == pair
    assert documents(tmp_path, user="{q}", assistant="{a}") == [[{"role": "user", "content": "Which?"}, pair[1]]]


def test_the_named_split_is_read(tmp_path: Path) -> None:
    write(tmp_path, ROWS)
    write(tmp_path, [{"text": "held out"}], "test")
    assert documents(tmp_path, text="text", split="test") == ["held out"]
    with pytest.raises(InputError, match=r"'set': the dataset 'set' cannot be read.*nonesuch"):
        documents(tmp_path, text="text", split="nonesuch")


def test_a_wrong_column_or_record_is_named(tmp_path: Path) -> None:
    write(tmp_path, ROWS)
    with pytest.raises(InputError, match="set, split train, record 1 has no field 'body'") as caught:
        documents(tmp_path, text="body")
    assert "text, q, a, talk" in caught.value.remedy
    with pytest.raises(InputError, match="record 1: the column 'talk' holds no text"):
        documents(tmp_path, text="talk")


def test_no_more_is_read_than_the_budget_needs(tmp_path: Path, encoder: ChatEncoder) -> None:
    def chat(number: int, role: str = "user") -> dict[str, Any]:
        return {"messages": [{"role": role, "content": f"question {number} on the bank of the river"}]}

    write(tmp_path, [*map(chat, range(3_000)), chat(3_000, "tool")])  # the last one would be refused
    summary = run_corpus(build_config(tmp_path, messages="messages"), encoder).summary()
    (part,) = summary["sources"]
    assert part["documents"] < 1_000
    assert part["tokens"] == summary["tokens"]
    assert all(summary["tokens"][split] for split in SPLITS)
    assert part["dataset"] == {"path": "set", "config_name": None, "split": "train", "revision": None}
    assert [len(digest) for digest in part["sha256"]] == [16]


def test_the_key_follows_the_content_of_the_split_alone(tmp_path: Path, encoder: ChatEncoder) -> None:
    write(tmp_path, ROWS)
    write(tmp_path, ROWS, "test")
    config = build_config(tmp_path, text="text")
    key = corpus_key(config, encoder)
    write(tmp_path, ROWS)  # same bytes, newer file
    write(tmp_path, ROWS[:1], "test")
    assert corpus_key(config, encoder) == key
    write(tmp_path, ROWS[:1])
    assert corpus_key(config, encoder) != key


def test_a_hub_dataset_on_an_offline_machine_names_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'set': the dataset 'sensecheck/nonesuch' cannot be read") as caught:
        documents(tmp_path, path="sensecheck/nonesuch", text="text")
    assert "folder below the corpus root" in caught.value.remedy


def test_another_commit_than_the_pinned_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cached(path: str, name: str | None, revision: str | None) -> SimpleNamespace:
        return SimpleNamespace(hash="cd" * 20)

    monkeypatch.setattr(datasets, "load_dataset_builder", cached)  # as the library does with a cached copy
    with pytest.raises(InputError, match=f"instead of commit {'ab' * 20}"):
        documents(tmp_path, path="owner/name", text="text", revision="ab" * 20)


def test_splits_can_be_joined(tmp_path: Path) -> None:
    write(tmp_path, [{"text": "seen"}])
    write(tmp_path, [{"text": "held out"}], "test")
    both = source(text="text", split="train+test")
    origin = find_origin(corpus(tmp_path), both)
    assert list(read_documents(both, origin)) == ["seen", "held out"]
    assert len(origin.sha256) == 2
