"""The real small model in this process: a prompt that was read is in no file afterwards."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import pytest

from middleware import SAEAnnotator
from sae_runtime.paths import cache_dir

pytestmark = pytest.mark.model

CANARY = "zebracanary"
_SLACK = 2.0  # seconds by which a file system's clock may be behind


def files_since(moment: float, *folders: Path) -> list[Path]:
    found = []
    for folder in folders:
        for path in folder.rglob("*"):
            try:
                if path.is_file() and path.stat().st_mtime >= moment - _SLACK and os.access(path, os.R_OK):
                    found.append(path)
            except OSError:  # somebody else's temporary file has gone meanwhile
                continue
    return found


def holds(path: Path) -> bool:
    try:
        return CANARY.encode() in path.read_bytes()
    except OSError:
        return False


def test_reading_in_process_stores_no_prompt(small_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    began = time.time()
    annotator = SAEAnnotator.from_catalog(small_model, domain="biology", deadline=600, on_error="raise")
    found = annotator.annotate(f"How often should I clean my mouse, {CANARY}?")
    assert found.reading is not None and found.reading.mentions
    written = files_since(began, cache_dir(), tmp_path)
    assert [path for path in written if holds(path)] == []
    (tmp_path / "control").write_text(CANARY)
    assert [path.name for path in files_since(began, tmp_path) if holds(path)] == ["control"]
