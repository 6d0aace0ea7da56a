"""The disk is full, or nothing on it may be written: what cannot be done is said, what is there stays as it is."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from faults.builds import WholeBuild, contents, home_in, in_step
from faults.killing import Moment, Surroundings, build, ends, start
from faults.making import MESSAGES, TEXT, alive
from langchain_core.messages import HumanMessage
from tiny_builds import cache, results
from transformers import AutoModelForCausalLM, AutoTokenizer

from middleware import SAEAnnotator
from sae_runtime.build.stages import Stage, write_tensors, write_text
from sae_runtime.catalog.store import upgrade_catalog
from sae_runtime.detector import Inspector
from sae_runtime.errors import ArtefactError, CatalogError, ModelError, ServerError
from sae_runtime.models.convert import convert_gguf
from sae_runtime.models.manifest import SMALL_MODEL, builtin_manifests
from sae_runtime.paths import CATALOG_FILE, SAE_WEIGHTS_FILE
from sae_runtime.serving import ModelServer, ServerOptions
from ui.words.overlay import Overlay

STOPPED = 3  # exit code of an error with a remedy


def mount(folder: Path, *options: str) -> None:
    done = subprocess.run(["mount", *options, str(folder)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"mounting is not permitted here: {done.stderr.strip()}")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own, in memory, with 64 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("only root may mount a disk")
    mount(folder, "-t", "tmpfs", "-o", "size=64m", "tmpfs")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextmanager
def full(disk: Path) -> Iterator[None]:
    """There is no room at all in the block."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        while True:
            try:
                file.write(bytes(4096))
            except OSError:
                break
    yield
    filler.unlink()


@contextmanager
def read_only(disk: Path) -> Iterator[None]:
    """Nothing can be written in the block."""
    mount(disk, "-o", "remount,ro")
    yield
    mount(disk, "-o", "remount,rw")


CUTS = {
    "harvest": Moment("os.rename", in_step("harvest"), signal=signal.SIGSTOP),
    "train": Moment("os.rename", in_step("train") + "*checkpoint", signal=signal.SIGSTOP),
    "contexts": Moment("os.rename", in_step("contexts"), count=2, signal=signal.SIGSTOP),
    "publish": Moment("os.rename", rf"\.partial/{SAE_WEIGHTS_FILE}", signal=signal.SIGSTOP),
    "catalog": Moment("sqlite3.connect", rf"\.partial/{CATALOG_FILE}", count=3, signal=signal.SIGSTOP),
}


@pytest.mark.parametrize(("step", "moment"), CUTS.items(), ids=CUTS)
def test_a_build_goes_on_when_there_is_room_again(whole: WholeBuild, disk: Path, step: str, moment: Moment) -> None:
    """The disk runs full while it is in that step; it stops with an error, and nothing half-written keeps a name."""
    if step in ("publish", "catalog"):
        shutil.copytree(whole.home, disk / "home")
    command = (str(whole.config), str(disk / "artefacts"))
    process = start(build, *command, around=Surroundings(home_in(disk), moment=moment))
    assert process.pid
    _, status = wait_stopped(process.pid)
    assert os.WIFSTOPPED(status)
    with full(disk):
        os.kill(process.pid, signal.SIGCONT)
        process.join()
        assert process.exitcode == STOPPED
    assert not (disk / "artefacts").exists()
    assert not list((disk / "home").glob("builds/*/*/.*"))  # what was begun is not left to fill the disk
    assert ends(build, *command, around=Surroundings(home_in(disk))) == 0
    assert results(disk / "home") == results(whole.home)
    assert contents(disk / "artefacts") == contents(whole.artefacts)


def wait_stopped(pid: int) -> tuple[int, int]:
    """Wait until a process that is not our child is stopped."""
    import time

    while alive(pid):
        state = Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()[0]
        if state == "T":
            return pid, (signal.SIGSTOP << 8) | 0x7F
        time.sleep(0.01)
    raise AssertionError("it ended before it was stopped")


def test_a_build_whose_files_would_grow_too_large_stops_and_goes_on(whole: WholeBuild, tmp_path: Path) -> None:
    """The portable way to make writing fail: a limit on the size of files, which needs no rights."""
    command = (str(whole.config), str(tmp_path / "artefacts"))
    for limit in (2_000, 50_000, 200_000):
        assert ends(build, *command, around=Surroundings(home_in(tmp_path), file_bytes=limit)) == STOPPED
        assert not (tmp_path / "artefacts").exists()
    assert ends(build, *command, around=Surroundings(home_in(tmp_path))) == 0
    assert results(tmp_path / "home") == results(whole.home)
    assert contents(tmp_path / "artefacts") == contents(whole.artefacts)


WRITES: dict[str, Callable[[Path], None]] = {
    "tensors": lambda folder: write_tensors(folder / "new", {"a": torch.zeros(100_000)}),
    "text": lambda folder: write_text(folder / "new", "x" * 100_000),
    "the mark of a finished step": lambda folder: finish(folder),
}


def finish(folder: Path) -> None:
    with cache(folder):
        Stage("model", "step", "key").finish({"figures": list(range(10_000))})


@pytest.mark.parametrize("state", [full, read_only])
@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_what_a_step_cannot_write_is_an_error_with_a_remedy(disk: Path, state: Any, write: Any) -> None:
    before = sorted(disk.rglob("*"))
    with state(disk):
        with pytest.raises(ArtefactError, match="cannot be written") as caught:
            write(disk)
        assert "run the build again" in caught.value.remedy
    assert [path for path in sorted(disk.rglob("*")) if path.is_file()] == [p for p in before if p.is_file()]


def test_an_upgrade_without_room_leaves_the_catalog_as_it_was(disk: Path, artefacts: Path) -> None:
    path = Path(shutil.copy(artefacts / CATALOG_FILE, disk))
    before = path.read_bytes()
    for state in (full, read_only):
        with state(disk), pytest.raises(CatalogError):
            upgrade_catalog(path)
        assert path.read_bytes() == before
    upgrade_catalog(path)


@pytest.mark.parametrize("state", [full, read_only])
def test_readings_need_no_disk(tiny: Path, artefacts: Path, disk: Path, state: Any) -> None:
    """Model, artefacts and cache are on a disk that nobody can write to, and nothing is cached yet."""
    model, folder = shutil.copytree(tiny, disk / "llama"), shutil.copytree(artefacts, disk / "artefacts")
    (disk / "home").mkdir()
    with cache(disk / "home"), state(disk):
        annotator = SAEAnnotator.from_catalog(str(model), artefacts=folder)
        assert "First." in annotator.invoke([HumanMessage(TEXT)])[0].content
        reading = Inspector.from_model(str(model), artefacts=folder).inspect(MESSAGES)
        assert len(reading.misreads) == 1


@pytest.mark.parametrize("state", [full, read_only])
def test_a_model_that_cannot_be_kept_is_an_error_with_a_remedy(
    tiny: Path, disk: Path, state: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny), AutoTokenizer.from_pretrained(tiny)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *args, **options: model)
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *args, **options: tokenizer)
    with state(disk), pytest.raises(ModelError) as caught:
        convert_gguf(builtin_manifests()[SMALL_MODEL], disk / "model.gguf", disk / "model")
    assert "disk space" in caught.value.remedy
    assert list(disk.iterdir()) == []


def test_a_server_without_a_log_is_an_error_with_a_remedy(
    tiny: Path, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sae_runtime.serving.server.find_spec", lambda name: SimpleNamespace())
    with cache(disk / "home"), read_only(disk), pytest.raises(ServerError, match="log") as caught:
        ModelServer.start(str(tiny), ServerOptions(port=0, engine="none"))
    assert "SENSECHECK_HOME" in caught.value.remedy


def test_words_of_ones_own_stay_when_they_cannot_be_changed(disk: Path) -> None:
    """Everything else about that file: tests/unit/ui/test_overlay.py."""
    from sae_runtime.errors import InputError
    from sae_runtime.glossary import Term

    overlay = Overlay.at(disk, None)
    overlay.add(Term(term="churn", meaning="customers who leave", otherwise=["making butter"]))
    before = overlay.as_yaml()
    for state in (full, read_only):
        with state(disk), pytest.raises(InputError, match="cannot be written"):
            overlay.add(Term(term="lead", meaning="a possible customer", otherwise=["a metal"]))
        assert overlay.as_yaml() == before
    assert [path.name for path in disk.iterdir()] == ["local.yaml"]
