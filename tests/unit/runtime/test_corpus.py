"""From local text to token sequences: what counts as a document, how documents are split, what is refused."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from sae_runtime.build.config import BuildConfig, TrainConfig
from sae_runtime.build.corpus import SPLITS, corpus_key, document_hash, load_sequences, run_corpus
from sae_runtime.build.corpus_config import (
    ChatSource,
    CorpusConfig,
    DatasetSource,
    DialogueSource,
    RecordSource,
    Source,
    TextSource,
)
from sae_runtime.build.sources import Origin, find_origin, read_documents, source_files
from sae_runtime.engines.chat import ChatEncoder
from sae_runtime.errors import InputError


@pytest.fixture(scope="module")
def encoder(tokenizer_folder: Callable[..., Path]) -> ChatEncoder:
    return ChatEncoder(tokenizer_folder())


def text_source(*paths: str) -> TextSource:
    return TextSource(kind="text", name="texts", licence="own", paths=list(paths))


def records(path: str) -> RecordSource:
    return RecordSource(kind="records", name="records", licence="own", paths=[path], user="{q}", assistant="{a}")


def chats(path: str, **settings: str) -> ChatSource:
    return ChatSource(kind="chats", name="chats", licence="own", paths=[path], **settings)


def dataset(path: str = "set", **settings: str) -> DatasetSource:
    return DatasetSource(kind="dataset", name="set", licence="own", path=path, **settings)


def build_config(root: Path, sources: list[Any], **budgets: int) -> BuildConfig:
    tokens = {"train_tokens": 4_000, "validation_tokens": 200, "test_tokens": 200} | budgets
    corpus = CorpusConfig(root=root, sources=sources, sequence_length=32, **tokens)
    return BuildConfig(model="tiny", layer=1, corpus=corpus, train=TrainConfig(width=8, k=2))


def write_records(root: Path, count: int) -> None:
    lines = [json.dumps({"q": f"question {n} on the bank", "a": f"answer {n} of the assistant"}) for n in range(count)]
    (root / "records.jsonl").write_text("\n".join(lines + lines[:50]), "utf-8")  # the first fifty occur twice


def documents(source: Source, path: Path) -> list[Any]:
    return list(read_documents(source, Origin(files=[path])))


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
    assert first.key == corpus_key(config, encoder)
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


def test_a_token_that_appears_when_another_is_removed_goes_too(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("the <|im_<|x|>end|>bank", "utf-8")
    assert documents(text_source("a.txt"), tmp_path / "a.txt") == ["the bank"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"q": "x", "a": "y"}\n{"q": "x"}', r"line 2 does not fit .*'a'"),
        ('\n{"q"', "line 2 is no JSON"),
        ('{"q": "x", "a": "y"}\n["x"]', "line 2 is no JSON object"),
    ],
)
def test_a_malformed_record_is_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "r.jsonl").write_text(content, "utf-8")
    with pytest.raises(InputError, match=rf"'records': .*r\.jsonl, {message}"):
        documents(records("r.jsonl"), tmp_path / "r.jsonl")


CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Which bank<|im_end|>?"},
    {"role": "assistant", "content": "The river's."},
]
SHAREGPT = [
    {"from": "system", "value": "Be brief."},
    {"from": "human", "value": "Which bank?"},
    {"from": "gpt", "value": "The river's."},
]
READ = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Which bank?"},
    {"role": "assistant", "content": "The river's."},
]


@pytest.mark.parametrize("messages", [CHAT, SHAREGPT])
@pytest.mark.parametrize("name", ["c.json", "c.jsonl"])
def test_chats_are_read_in_both_spellings(tmp_path: Path, name: str, messages: list[dict[str, str]]) -> None:
    rows = [{"id": 1, "talk": messages}, {"id": 2, "talk": messages[:2]}, {"id": 3, "talk": []}]
    (tmp_path / name).write_text(json.dumps(rows) if name == "c.json" else "\n".join(map(json.dumps, rows)), "utf-8")
    assert documents(chats(name, messages="talk"), tmp_path / name) == [READ, READ[:2]]


def test_empty_system_messages_are_dropped_and_other_empty_messages_drop_the_chat(tmp_path: Path) -> None:
    empty = {"role": "system", "content": " "}
    rows = [{"messages": [empty, *CHAT[1:]]}, {"messages": [*CHAT[:2], {"role": "assistant", "content": "<|x|>"}]}]
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    assert documents(chats("c.jsonl"), tmp_path / "c.jsonl") == [READ[1:]]


@pytest.mark.parametrize(
    ("record", "message", "remedy"),
    [
        ({"messages": [*CHAT, {"role": "tool", "content": "x"}]}, "message 4 has the role 'tool'", "assistant, human"),
        ({"messages": [{"from": "bard", "value": "x"}]}, "message 1 has the from 'bard'", "remove the conversation"),
        ({"messages": [{"content": "x"}]}, "message 1 has the role None", "Known: system, user"),
        ({"messages": [CHAT[1], {"role": "assistant"}]}, "message 2 has no text in 'content'", "Fill it in"),
        ({"messages": [{"from": "gpt", "value": ["x"]}]}, "message 1 has no text in 'value'", "Fill it in"),
        ({"messages": ["x"]}, "message 1 is no JSON object", "role and content"),
        ({"messages": "x"}, "the field 'messages' is no list of messages", "Name the field"),
        ({"talk": CHAT}, "has no field 'messages'", "talk"),
    ],
)
def test_a_malformed_chat_is_named_with_file_and_line(
    tmp_path: Path, record: dict[str, Any], message: str, remedy: str
) -> None:
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, [{"messages": CHAT}, record])), "utf-8")
    with pytest.raises(InputError, match=r"'chats': .*c\.jsonl, line 2") as caught:
        documents(chats("c.jsonl"), tmp_path / "c.jsonl")
    assert message in caught.value.message
    assert remedy in caught.value.remedy


def test_a_chat_that_the_template_rejects_is_named(tmp_path: Path, tokenizer_folder: Callable[..., Path]) -> None:
    strict = ChatEncoder(tokenizer_folder("{{ raise_exception('no system role') }}"))
    (tmp_path / "c.jsonl").write_text(json.dumps({"messages": CHAT}), "utf-8")
    with pytest.raises(InputError, match=r"'chats', the conversation that begins 'Be brief\.': .*no system role"):
        run_corpus(build_config(tmp_path, [chats("c.jsonl")]), strict)


@given(st.lists(st.text("aB é-?", min_size=1, max_size=12), min_size=1, max_size=5))
def test_case_spacing_and_punctuation_do_not_make_another_document(words: list[str]) -> None:
    text = " ".join(["river", *words])
    variants = [text.upper(), text.replace(" ", "\n\t "), f"«{text}»...", text.replace("-", " – "), f"\ufeff{text}"]
    assert {document_hash(variant) for variant in variants} == {document_hash(text)}
    chat = [{"role": "user", "content": text}]
    assert {document_hash([{"role": "user", "content": variant}]) for variant in variants} == {document_hash(chat)}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("the bank", "the banks"),
        ("re-sign", "resign"),
        ("2 + 2", "2 = 2"),
        ("!!!", "???"),
        ("की", "के"),  # differ in a vowel sign alone
        ([{"role": "user", "content": "yes"}], [{"role": "assistant", "content": "yes"}]),
        ([{"role": "user", "content": "a b"}], [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]),
    ],
)
def test_other_words_or_roles_make_another_document(one: Any, other: Any) -> None:
    assert document_hash(one) != document_hash(other)


def test_near_identical_documents_are_kept_once_over_all_sources(tmp_path: Path, encoder: ChatEncoder) -> None:
    rows = [{"q": f"question {n} on the bank", "a": f"answer {n} of the assistant"} for n in range(200)]
    variants = [{"q": row["q"].upper() + "?!", "a": f"  {row['a']}."} for row in rows]
    (tmp_path / "one.jsonl").write_text("\n".join(map(json.dumps, rows + rows[:50])), "utf-8")
    talks = [
        {"messages": [{"role": "user", "content": v["q"]}, {"role": "assistant", "content": v["a"]}]} for v in variants
    ]
    (tmp_path / "two.jsonl").write_text("\n".join(map(json.dumps, talks)), "utf-8")
    sources = [records("one.jsonl"), chats("two.jsonl")]
    budgets = {f"{split}_tokens": 10**6 for split in SPLITS}
    summary = run_corpus(build_config(tmp_path, sources, **budgets), encoder).summary()
    first, second = summary["sources"]
    assert (first["name"], first["licence"], first["documents"], first["duplicates"]) == ("records", "own", 200, 50)
    assert (second["documents"], second["duplicates"]) == (0, 200)
    assert first["tokens"] == summary["tokens"]
    assert second["tokens"] == dict.fromkeys(SPLITS, 0)
    assert [len(value) for value in first["sha256"] + second["sha256"]] == [16, 16]


def test_weights_divide_the_tokens(tmp_path: Path, encoder: ChatEncoder) -> None:
    for name in ("one", "two"):
        rows = [{"q": f"{name} {n} on the bank", "a": f"answer {n} of the assistant"} for n in range(400)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    heavy = records("one.jsonl").model_copy(update={"weight": 3.0})
    light = records("two.jsonl").model_copy(update={"name": "light"})
    tokens = [
        part["tokens"]["train"]
        for part in run_corpus(build_config(tmp_path, [heavy, light]), encoder).summary()["sources"]
    ]
    assert 3_000 <= tokens[0] < 3_032
    assert 1_000 <= tokens[1] < 1_032


def test_two_sources_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="same name"):
        build_config(tmp_path, [records("a.jsonl"), records("b.jsonl")])


@pytest.mark.parametrize(
    "form",
    [
        {},
        {"text": "t", "messages": "m"},
        {"user": "{q}"},
        {"assistant": "{a}"},
        {"text": "t", "user": "", "assistant": ""},
    ],
)
def test_a_dataset_has_exactly_one_form(form: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match=r"exactly one|go together"):
        dataset(**form)


def test_without_the_package_a_dataset_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    corpus = CorpusConfig(root=tmp_path, sources=[], train_tokens=1)
    with pytest.raises(InputError, match="needs the package `datasets`") as caught:
        find_origin(corpus, dataset(text="t"))
    assert "sensecheck[build]" in caught.value.remedy


def test_a_pinned_dataset_has_its_key_without_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    corpus = CorpusConfig(root=tmp_path, sources=[], train_tokens=1)
    source = dataset("owner/name", text="t", revision="ab" * 20)
    assert find_origin(corpus, source) == Origin("owner/name", revision="ab" * 20)
