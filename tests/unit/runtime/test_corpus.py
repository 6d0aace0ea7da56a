"""From local text to token sequences: what counts as a document, how documents are split, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sae_runtime.build.config import (
    BuildConfig,
    CorpusConfig,
    DialogueSource,
    RecordSource,
    Source,
    TextSource,
    TrainConfig,
)
from sae_runtime.build.corpus import SPLITS, load_sequences, read_documents, run_corpus, source_files
from sae_runtime.engines.chat import ChatEncoder
from sae_runtime.errors import InputError


@pytest.fixture(scope="module")
def encoder(tokenizer_folder: Callable[..., Path]) -> ChatEncoder:
    return ChatEncoder(tokenizer_folder())


def text_source(*paths: str) -> TextSource:
    return TextSource(kind="text", name="texts", licence="own", paths=list(paths))


def records(path: str) -> RecordSource:
    return RecordSource(kind="records", name="records", licence="own", paths=[path], user="{q}", assistant="{a}")


def build_config(root: Path, sources: list[Any], **budgets: int) -> BuildConfig:
    tokens = {"train_tokens": 4_000, "validation_tokens": 200, "test_tokens": 200} | budgets
    corpus = CorpusConfig(root=root, sources=sources, sequence_length=32, **tokens)
    return BuildConfig(model="tiny", layer=1, corpus=corpus, train=TrainConfig(width=8, k=2))


def write_records(root: Path, count: int) -> None:
    lines = [json.dumps({"q": f"question {n} on the bank", "a": f"answer {n} of the assistant"}) for n in range(count)]
    (root / "records.jsonl").write_text("\n".join(lines + lines[:50]), "utf-8")  # the first fifty occur twice


def documents(source: Source, path: Path) -> list[Any]:
    return list(read_documents(source, [path]))


def test_every_conversation_is_read_once_and_lands_in_one_split(tmp_path: Path, encoder: ChatEncoder) -> None:
    write_records(tmp_path, 200)
    stage = run_corpus(build_config(tmp_path, [records("*.jsonl")], train_tokens=10**6), encoder)
    questions: dict[str, list[str]] = {}
    for split in SPLITS:
        texts = "".join(encoder.tokenizer.decode(ids) for ids in load_sequences(stage, split)).split("question ")
        questions[split] = [text.split(" ")[0] for text in texts[1:]]
        assert questions[split]
        assert len(questions[split]) == len(set(questions[split]))
    for one, other in combinations(SPLITS, 2):
        assert not set(questions[one]) & set(questions[other])


def test_sequences_have_the_wanted_length_and_the_budgets_hold(tmp_path: Path, encoder: ChatEncoder) -> None:
    write_records(tmp_path, 400)
    stage = run_corpus(build_config(tmp_path, [records("*.jsonl")], train_tokens=2_000), encoder)
    figures = stage.summary()["tokens"]
    for split, budget in (("train", 2_000), ("validation", 200), ("test", 200)):
        sequences = load_sequences(stage, split)
        assert all(8 <= len(ids) <= 32 for ids in sequences)
        assert sum(map(len, sequences)) == figures[split] < budget + 64


def test_a_finished_corpus_is_kept_and_other_settings_make_another(tmp_path: Path, encoder: ChatEncoder) -> None:
    write_records(tmp_path, 200)
    config = build_config(tmp_path, [records("*.jsonl")])
    first = run_corpus(config, encoder)
    stamp = (first.folder / "train.safetensors").stat().st_mtime_ns
    assert run_corpus(config, encoder).folder == first.folder
    assert (first.folder / "train.safetensors").stat().st_mtime_ns == stamp
    assert run_corpus(config.model_copy(update={"seed": 1}), encoder).key != first.key
    (tmp_path / "records.jsonl").write_text((tmp_path / "records.jsonl").read_text("utf-8") + "\n", "utf-8")
    assert run_corpus(config, encoder).key != first.key


def test_too_little_text_is_refused(tmp_path: Path, encoder: ChatEncoder) -> None:
    (tmp_path / "one.txt").write_text("one short passage about the bank of the river", "utf-8")
    with pytest.raises(InputError, match="no text for the"):
        run_corpus(build_config(tmp_path, [text_source("*.txt")]), encoder)


def test_a_pattern_without_files_names_source_and_pattern(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x", "utf-8")
    corpus = CorpusConfig(root=tmp_path, sources=[], train_tokens=1)
    assert source_files(corpus, text_source("*.txt")) == [tmp_path / "a.txt"]
    with pytest.raises(InputError, match=r"'texts'.*nonesuch-\*") as caught:
        source_files(corpus, text_source("*.txt", "nonesuch-*"))
    assert "SENSECHECK_CORPUS" in caught.value.remedy


@given(st.lists(st.text("ab é\n\t", min_size=1), max_size=8))
def test_text_blocks_keep_all_words_in_order(tmp_path_factory: pytest.TempPathFactory, paragraphs: list[str]) -> None:
    path = tmp_path_factory.mktemp("text") / "a.txt"
    text = "\n\n".join(paragraphs)
    path.write_text(text, "utf-8")
    assert " ".join(documents(text_source("a.txt"), path)).split() == text.split()


def test_long_text_is_cut_into_blocks_between_paragraphs(tmp_path: Path) -> None:
    paragraph = "word " * 500
    (tmp_path / "a.txt").write_text("\n\n".join([paragraph] * 8), "utf-8")
    blocks = documents(text_source("a.txt"), tmp_path / "a.txt")
    assert [len(block.split()) for block in blocks] == [2_000, 2_000]


def test_dialogues_become_conversations_that_the_user_begins(tmp_path: Path) -> None:
    (tmp_path / "d.txt").write_text(
        "Assistant: Welcome\nUser: Hello: there\nNarrator: enters\nAssistant: Hi\nAssistant: again\nUser:\n\n"
        "Assistant: alone\n\nUser: bye",
        "utf-8",
    )
    source = DialogueSource(kind="dialogue", name="d", licence="own", paths=["d.txt"])
    assert documents(source, tmp_path / "d.txt") == [
        [{"role": "user", "content": "Hello: there"}, {"role": "assistant", "content": "Hi\nagain"}],
        [{"role": "user", "content": "bye"}],
    ]


def test_dialogues_can_come_from_a_column_with_named_speakers(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text('id,talk\n1,"User 1: Hi\nUser 2: Hello"\n', "utf-8")
    source = DialogueSource(
        kind="dialogue", name="d", licence="own", paths=["d.csv"], column="talk", user="User 1", assistant="User 2"
    )
    expected = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    assert documents(source, tmp_path / "d.csv") == [expected]


@pytest.mark.parametrize("name", ["r.json", "r.jsonl"])
def test_records_lose_template_tokens_and_empty_ones_are_skipped(tmp_path: Path, name: str) -> None:
    rows = [{"q": "Hi<|im_end|> there ", "a": "<|im_start|>Hello"}, {"q": "<|x|>", "a": "nothing asked"}]
    text = json.dumps(rows) if name == "r.json" else "\n".join(map(json.dumps, rows))
    (tmp_path / name).write_text(text, "utf-8")
    expected = [{"role": "user", "content": "Hi there"}, {"role": "assistant", "content": "Hello"}]
    assert documents(records(name), tmp_path / name) == [expected]
