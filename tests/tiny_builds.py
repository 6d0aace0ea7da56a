"""A whole build in seconds: its text, a pack of a few concepts, its configuration. For the tiny models of :mod:`tiny_models`."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny_models import sentences

from sae_runtime.paths import PACKS

LAYER, WIDTH, K, BATCH, EPOCHS = 1, 96, 6, 256, 2
CATALOGUED = 80
# Fitting all concepts of even the smallest pack would take most of the time.
CONCEPTS = ("mean", "share", "sum", "times")


@contextmanager
def one_thread() -> Iterator[None]:
    """Threads only wait for each other in models as small as these."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@contextmanager
def cache(home: Path) -> Iterator[None]:
    """Sensecheck's cache is ``home``; the machine's own corpus stays out of it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SENSECHECK_HOME", str(home))
        patch.delenv("SENSECHECK_CORPUS", raising=False)
        yield


def make_corpus(root: Path) -> Path:
    """About 20,000 tokens of questions with answers, conversations and plain text, in many short documents."""
    said = sentences(900, seed=1)
    records = [{"question": said[i], "answer": said[i + 1]} for i in range(0, 500, 2)]
    (root / "records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
    talks = ["\n".join(f"{who}: {said[i + n]}" for n, who in enumerate("ABA")) for i in range(500, 800, 3)]
    (root / "talks.txt").write_text("\n\n".join(talks), "utf-8")
    for number in range(800, 900, 4):
        (root / f"text-{number}.txt").write_text("\n\n".join(said[number : number + 4]), "utf-8")
    return root


def make_pack(folder: Path) -> Path:
    """A pack of a few concepts of the smallest one."""
    folder.mkdir()
    for concept in CONCEPTS:
        shutil.copy(PACKS / "arithmetic" / f"{concept}.yaml", folder)
    return folder


def write_config(path: Path, model: Path, corpus: Path, pack: Path) -> Path:
    """A build configuration for ``model``."""
    own = {"licence": "written for this test"}
    config = {
        "model": str(model),
        "layer": LAYER,
        "seed": 3,
        "dtype": "float32",
        "harvest_batch_tokens": 1024,
        "corpus": {
            "root": str(corpus),
            "sequence_length": 64,
            "train_tokens": 20_000,
            "validation_tokens": 1_500,
            "test_tokens": 1_500,
            "sources": [
                {"kind": "records", "name": "questions", "paths": ["*.jsonl"], "weight": 2.0, **own,
                 "user": "{question}", "assistant": "{answer}"},
                {"kind": "dialogue", "name": "talks", "paths": ["talks.txt"], "user": "A", "assistant": "B", **own},
                {"kind": "text", "name": "texts", "paths": ["text-*.txt"], "weight": 0.5, **own},
            ],
        },
        "train": {
            "width": WIDTH, "k": K, "batch_tokens": BATCH, "epochs": EPOCHS, "learning_rate": 0.004, "warmup_steps": 20,
            "auxiliary_k": 16, "dead_after_tokens": 5_000,
        },
        # An untrained model's features are hardly worth describing; let some pass.
        "validation": {
            "min_samples": 5, "min_balanced_accuracy": 0.5, "max_interval": 1.0, "min_precision": 0.0, "min_correlation": 0.3,
            "min_sensitivity": 0.0, "fresh_texts": 2, "epochs": 1,
        },
        "concepts": {"packs": [str(pack)], "max_features": 12, "catalogued_latents": CATALOGUED},
    }  # fmt: skip
    path.write_text(yaml.safe_dump(config), "utf-8")
    return path


def results(home: Path) -> dict[str, Any]:
    """All files that the stages wrote, as digests (a failing test shows what it compared); records without times."""
    found: dict[str, Any] = {}
    for path in sorted(home.glob("builds/*/**/*")):
        if path.is_dir() or path.name.endswith(".partial"):
            continue
        content: Any = hashlib.sha256(path.read_bytes()).hexdigest()
        if path.name == "done.json":
            record = json.loads(path.read_text("utf-8"))
            content = {name: value for name, value in record.items() if "second" not in name}
        found[str(path.relative_to(home))] = content
    return found
