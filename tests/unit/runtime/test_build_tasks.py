"""How a build's work is cut into tasks: what is done again, what is left behind, and that cutting changes nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sae_runtime.build import harvest
from sae_runtime.build.config import load_config
from sae_runtime.build.features.encoded import Encoded
from sae_runtime.build.features.firings import BATCH, Firings
from sae_runtime.build.features.stability import Comparison, counterparts
from sae_runtime.build.harvest import load_residual, load_rows, run_harvest
from sae_runtime.build.pipeline import run_build
from sae_runtime.build.ray_clusters import environment
from sae_runtime.build.ray_workers import RayWorkers
from sae_runtime.build.stages import Stage, write_tensors, write_text
from sae_runtime.build.train import load_trained
from sae_runtime.build.workers import LocalWorkers, Span, complete, open_workers, spans
from sae_runtime.errors import ArtefactError, InputError
from sae_runtime.models.manifest import SMALL_MODEL
from sae_runtime.sae import JumpReLUSAE, save_sae


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    monkeypatch.setenv("SENSECHECK_HOME", str(tmp_path))
    return Stage("model", "step", "0123456789")


@dataclass
class Writing:
    """A job that writes the span's numbers, and notes what was done."""

    fails_at: int | None = None
    seen: list[Any] = field(default_factory=list)

    @contextmanager
    def open(self) -> Iterator[Callable[[Span], None]]:
        """See :class:`sae_runtime.build.workers.Job`."""
        self.seen.append("opened")

        def write(span: Span) -> None:
            if span.start == self.fails_at:
                raise InputError("No.")
            self.seen.append(span.start)
            write_text(span.path, f"{span.start} {span.stop}")

        try:
            yield write
        finally:
            self.seen.append("closed")


@given(st.integers(0, 50), st.integers(1, 20))
def test_spans_cover_everything_once_and_in_order(total: int, step: int) -> None:
    cut = spans(Path("here"), "part", total, step)
    assert [item for span in cut for item in range(span.start, span.stop)] == list(range(total))
    assert all(0 < span.size <= step for span in cut)
    assert len({span.path for span in cut}) == len(cut)
    assert sorted(span.path for span in cut) == [span.path for span in cut]


def test_only_what_is_missing_is_done(tmp_path: Path) -> None:
    tasks = spans(tmp_path, "part", 10, 3, ".txt")
    broken = Writing(fails_at=6)
    with pytest.raises(InputError, match=r"No\."):
        complete(LocalWorkers(), broken, tasks, "writing")
    assert broken.seen == ["opened", 0, 3, "closed"]
    tasks[0].path.unlink()
    repaired = Writing()
    assert complete(LocalWorkers(), repaired, tasks, "writing", "numbers") is not None
    assert repaired.seen == ["opened", 0, 6, 9, "closed"]
    assert [task.path.read_text() for task in tasks] == ["0 3", "3 6", "6 9", "9 10"]
    idle = Writing()
    assert complete(LocalWorkers(), idle, tasks, "writing", "numbers") is None
    assert idle.seen == []  # no model is loaded for nothing


def test_a_finished_stage_keeps_neither_parts_nor_halves(stage: Stage) -> None:
    write_text(stage.folder / "result", "whole")
    write_text(stage.parts / "control" / "part", "part")
    (stage.folder / ".result.abc.partial").write_text("half")
    stage.finish({"figure": 1})
    assert sorted(path.name for path in stage.folder.rglob("*")) == ["done.json", "result"]
    assert stage.done and stage.summary() == {"figure": 1}


def test_a_file_that_cannot_be_written_leaves_the_old_one_and_no_half(stage: Stage) -> None:
    path = stage.folder / "file"
    write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "new \ud800")
    assert [(p.name, p.read_text()) for p in stage.folder.iterdir()] == [("file", "old")]


def test_two_writers_of_one_file_do_not_meet(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that was thought lost writes on while another does its task."""
    path, half = stage.folder / "file", Path.replace

    def slow(partial: Path, target: Path) -> Path:
        monkeypatch.setattr(Path, "replace", half)
        write_text(path, "the other's")
        assert partial.read_text() == "the slow one's"
        return half(partial, target)

    monkeypatch.setattr(Path, "replace", slow)
    write_text(path, "the slow one's")
    assert [(p.name, p.read_text()) for p in stage.folder.iterdir()] == [("file", "the slow one's")]


class Tokens:
    """An engine whose streams tell token and place, with a sink at the beginning."""

    def residual(self, sequences: list[list[int]]) -> list[torch.Tensor]:
        """``[tokens, 4]`` per sequence."""
        return [torch.tensor([[float(t), float(i), 1.0, 2.0] for i, t in enumerate(ids)]) for ids in sequences]

    def close(self) -> None:
        """Nothing."""


@pytest.fixture
def harvested(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> Stage:
    """A harvest whose train split has several shards."""
    monkeypatch.setattr(harvest, "_SHARD_TOKENS", 100)
    corpus = Stage("model", "corpus", "0")
    for split in harvest.SPLITS:
        lengths = torch.tensor([30, 50, 20, 40, 60, 10, 45], dtype=torch.int32)
        tokens = torch.arange(int(lengths.sum()), dtype=torch.int32) % 97
        write_tensors(corpus.folder / f"{split}.safetensors", {"tokens": tokens, "lengths": lengths})
    run_harvest(stage, corpus, Tokens, batch_tokens=128)
    return stage


def test_rows_are_numbered_over_all_shards(harvested: Stage) -> None:
    assert harvested.summary()["shards"] == {"train": 3, "validation": 3, "test": 3}
    whole = load_residual(harvested, "train")["residual"]
    edges = [0, 1, 70, 100, 101, 160, 199, len(whole)]
    for start in edges:
        for stop in [edge for edge in edges if edge > start]:
            assert torch.equal(load_rows(harvested, "train", start, stop), whole[start:stop])
    next(harvested.folder.glob("train-0001*")).write_bytes(b"damaged")
    with pytest.raises(ArtefactError, match=r"train-0001\.safetensors cannot be read"):
        load_rows(harvested, "train", 0, 1)


def dictionary(seed: int, width: int = 30) -> JumpReLUSAE:
    draw = torch.Generator().manual_seed(seed)
    decoder = torch.randn(width, 8, generator=draw)
    zeros = torch.zeros(width)
    weights = {"W_enc": decoder.T.contiguous(), "W_dec": decoder, "b_enc": zeros, "b_dec": torch.zeros(8)}
    return JumpReLUSAE({**weights, "threshold": zeros + 2.0}, {"hook_name": "blocks.0.hook_resid_post"})


def same(one: Firings, other: Firings) -> bool:
    return one.total == other.total and all(
        np.array_equal(getattr(one, name), getattr(other, name))
        and getattr(one, name).dtype == getattr(other, name).dtype
        for name in ("starts", "rows", "values")
    )


def test_firings_are_the_same_in_one_piece_and_in_parts(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit by bit: parts are whole batches."""
    x = torch.randn(2 * BATCH + 2 * BATCH + 77, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    trained = Stage("model", "train", "0")
    save_sae(dictionary(1), trained.folder)
    whole = Firings.collect(load_trained(trained), x, lambda rows: None)
    assert (whole.counts > 0).all()
    monkeypatch.setattr("sae_runtime.build.features.encoded.load_rows", lambda h, split, start, stop: x[start:stop])
    encoded = Encoded(stage.parts, "text", trained, stage, "test", len(x))
    encoded.make(LocalWorkers())
    assert len(list(stage.parts.iterdir())) == 3
    assert same(encoded.load(), whole)


def test_counterparts_are_the_same_in_one_piece_and_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(500, 8, generator=torch.Generator().manual_seed(0))
    mine, other = (Firings.collect(dictionary(seed), x, lambda rows: None) for seed in (1, 2))
    whole = Comparison(mine, other).of(0, 30)
    monkeypatch.setattr("sae_runtime.build.features.stability._BLOCK", 7)
    for part, all_at_once in zip(counterparts(mine, other), whole, strict=True):
        assert part.dtype == all_at_once.dtype
        assert np.array_equal(part, all_at_once)


@pytest.mark.parametrize("value", ["", "ray", "ray:", "dask:3", "local:2", "4"])
def test_unknown_workers_are_refused(value: str) -> None:
    with pytest.raises(InputError, match=r"There are no workers .*Use local, ray:N"):
        open_workers(value)


def test_workers_by_name() -> None:
    with open_workers("local") as workers:
        assert isinstance(workers, LocalWorkers)
    assert isinstance(open_workers("ray:3"), RayWorkers)
    assert isinstance(open_workers("ray://host:10001"), RayWorkers)
    for value in ("ray:0", "ray:00"):
        with pytest.raises(InputError, match="a number of at least 1"):
            open_workers(value)


def test_ray_is_needed_only_by_those_who_ask_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import sys, ui.cli.build, sae_runtime.build.pipeline; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    monkeypatch.setattr("sae_runtime.build.ray_workers.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"Ray is not installed\. pip install 'sensecheck\[ray\]'"):
        open_workers("ray:2")


def test_vllm_harvests_in_one_process_only() -> None:
    config = load_config(SMALL_MODEL).model_copy(update={"harvest_engine": "vllm"})
    with pytest.raises(InputError, match="vLLM harvests in one process only"):
        run_build(config, workers=RayWorkers(count=2))


def test_the_environment_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SENSECHECK_TEST_A", "before")
    monkeypatch.delenv("SENSECHECK_TEST_B", raising=False)
    with environment({"SENSECHECK_TEST_A": "a", "SENSECHECK_TEST_B": "b"}):
        assert (os.environ["SENSECHECK_TEST_A"], os.environ["SENSECHECK_TEST_B"]) == ("a", "b")
    assert os.environ["SENSECHECK_TEST_A"] == "before"
    assert "SENSECHECK_TEST_B" not in os.environ
