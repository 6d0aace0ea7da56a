"""A build is killed (SIGKILL) in every step, twice in each: it goes on where it was, and ends with the same results."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from faults.builds import WholeBuild, contents, home_in, in_step
from faults.killing import Moment, Surroundings, build, ends, start
from faults.making import eventually
from tiny_builds import cache, results

from sae_runtime.build import folders
from sae_runtime.build.config import load_config
from sae_runtime.build.pipeline import run_build
from sae_runtime.build.plan import STEPS
from sae_runtime.detector import Inspector
from sae_runtime.errors import InputError
from sae_runtime.paths import CARD_FILE, CATALOG_FILE, SAE_WEIGHTS_FILE

PROMPT: Any = [{"role": "user", "content": "What is the sum of two and forty?"}]


# In each step: before its first finished file gets its name, so that all its work is lost; and before it is marked as
# done, when all of it is there.
STEP_KILLS = [
    kill
    for name in STEPS
    for kill in (Moment("os.rename", in_step(name)), Moment("os.rename", in_step(name) + "*done.json"))
]
# Where a step has several files, in the middle of them.
FURTHER_KILLS = {
    "harvest": Moment("os.rename", in_step("harvest") + "*validation"),
    "train": Moment("os.rename", in_step("train") + "*checkpoint", count=2),
    "contexts": Moment("os.rename", in_step("contexts"), count=3),
}
PUBLISH_KILLS = {
    "before anything": Moment("os.mkdir", r"\.partial$"),
    "the dictionary": Moment("os.rename", rf"\.partial/{SAE_WEIGHTS_FILE}"),
    "an empty catalog": Moment("sqlite3.connect", rf"\.partial/{CATALOG_FILE}", count=2),
    "a catalog without thresholds": Moment("sqlite3.connect", rf"\.partial/{CATALOG_FILE}", count=4),
    "an open catalog": Moment("open", rf"\.partial/{CARD_FILE}"),
    "all but the report": Moment("os.rename", r"\.partial/report"),
    "everything, in place": Moment("shutil.rmtree", r"\.partial$", count=2),
}


def killed(whole: WholeBuild, folder: Path, moment: Moment) -> None:
    """Build in the cache of ``folder`` until that moment."""
    code = ends(
        build, str(whole.config), str(folder / "artefacts"), around=Surroundings(home_in(folder), moment=moment)
    )
    assert code == -signal.SIGKILL, moment


def test_a_build_killed_in_every_step_ends_as_if_nothing_had_happened(whole: WholeBuild, tmp_path: Path) -> None:
    done: dict[str, int] = {}
    for moment in STEP_KILLS:
        killed(whole, tmp_path, moment)
        assert not (tmp_path / "artefacts").exists()
        finished = {str(p): p.stat().st_mtime_ns for p in (tmp_path / "home").glob("builds/*/*/done.json")}
        assert done.items() <= finished.items()  # what was finished stays, and is not done again
        done = finished
    assert ends(build, str(whole.config), str(tmp_path / "artefacts"), around=Surroundings(home_in(tmp_path))) == 0
    assert len(done) == len(STEPS) - 1  # the last one was there, but not marked
    assert results(tmp_path / "home") == results(whole.home)
    assert contents(tmp_path / "artefacts") == contents(whole.artefacts)


@pytest.mark.parametrize(("name", "moment"), FURTHER_KILLS.items(), ids=FURTHER_KILLS)
def test_a_step_killed_between_its_files_goes_on_with_the_next(
    whole: WholeBuild, tmp_path: Path, name: str, moment: Moment
) -> None:
    killed(whole, tmp_path, moment)
    (step,) = (tmp_path / "home").glob(f"builds/*/{name}-*")
    kept = {path: path.stat().st_mtime_ns for path in step.glob("*.safetensors")}
    assert kept
    assert not (step / "done.json").exists()
    half = [step / name for name in (".tmpAbCdEf", ".train-0000.safetensors.0123abcd.partial")]
    for path in half:  # as when it is killed in the middle of writing
        path.write_bytes(b"half a file")
    assert ends(build, str(whole.config), str(tmp_path / "artefacts"), around=Surroundings(home_in(tmp_path))) == 0
    assert not any(path.exists() for path in half)
    if name != "train":  # whose checkpoint goes when it is finished
        assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert results(tmp_path / "home") == results(whole.home)
    assert contents(tmp_path / "artefacts") == contents(whole.artefacts)


def test_what_is_served_stays_whole_while_its_successor_is_killed(whole: WholeBuild, tmp_path: Path) -> None:
    """At any moment there are artefacts in place, all old or all new."""
    shutil.copytree(whole.home, tmp_path / "home")
    served = shutil.copytree(whole.artefacts, tmp_path / "artefacts")
    with closing(sqlite3.connect(served / CATALOG_FILE)) as connection, connection:
        connection.execute("UPDATE notes SET text = 'The old one.'")
        connection.execute("PRAGMA user_version = 0")
    before, after = contents(served), contents(whole.artefacts)
    for name, moment in PUBLISH_KILLS.items():
        killed(whole, tmp_path, moment)
        assert contents(served) == (after if name == "everything, in place" else before), name
        with cache(tmp_path / "home"):
            assert Inspector.from_model(str(whole.model), artefacts=served).inspect(PROMPT).mentions
    assert ends(build, str(whole.config), str(served), around=Surroundings(home_in(tmp_path))) == 0
    assert contents(served) == after
    assert {path.name for path in tmp_path.iterdir()} == {"home", "artefacts"}


def test_of_two_builds_at_once_one_is_told_to_wait(whole: WholeBuild, tmp_path: Path) -> None:
    moment = Moment("os.rename", in_step("harvest"), signal=signal.SIGSTOP)
    first = start(
        build, str(whole.config), str(tmp_path / "artefacts"), around=Surroundings(home_in(tmp_path), moment=moment)
    )
    eventually(lambda: list((tmp_path / "home").glob("builds/*/harvest-*/.*.partial")))
    with cache(tmp_path / "home"), pytest.raises(InputError, match=r"Another build of .* is running") as caught:
        run_build(load_config(str(whole.config)), out=tmp_path / "artefacts")
    assert "Wait" in caught.value.remedy
    assert first.pid
    os.kill(first.pid, signal.SIGCONT)
    first.join()
    assert first.exitcode == 0
    assert results(tmp_path / "home") == results(whole.home)
    assert contents(tmp_path / "artefacts") == contents(whole.artefacts)


def test_a_killed_build_does_not_lock_out_the_next(whole: WholeBuild, tmp_path: Path) -> None:
    killed(whole, tmp_path, Moment("os.rename", in_step("corpus")))
    with cache(tmp_path / "home"):
        assert run_build(load_config(str(whole.config)), out=tmp_path / "artefacts", until="corpus") is None


def test_there_are_artefacts_in_place_at_any_moment(tmp_path: Path) -> None:
    target, file = tmp_path / "artefacts", tmp_path / "artefacts" / CATALOG_FILE
    for name in ("artefacts", "coming"):
        (tmp_path / name).mkdir()
        (tmp_path / name / CATALOG_FILE).write_text(name)
    done, missed = threading.Event(), []

    def look() -> None:
        while not done.is_set():
            try:
                file.read_bytes()
            except FileNotFoundError as error:
                missed.append(error)

    thread = threading.Thread(target=look)
    thread.start()
    for number in range(2000):
        folders.replace_folder(tmp_path / "coming", target)
        (tmp_path / "coming").mkdir()
        (tmp_path / "coming" / CATALOG_FILE).write_text(str(number))
    done.set()
    thread.join()
    assert not missed


def test_where_folders_cannot_be_exchanged_a_killed_publication_is_made_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two renames then, and the process ends between them: the old artefacts wait beside their place."""
    monkeypatch.setattr(folders, "_exchange", lambda one, other: False)
    target, coming = tmp_path / "artefacts", tmp_path / "coming"
    for folder in (target, coming):
        folder.mkdir()
        (folder / CATALOG_FILE).write_text(folder.name)
    rename = Path.replace

    def once(path: Path, new: Path) -> None:
        if path == coming:
            raise KeyboardInterrupt
        rename(path, new)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "replace", once)
        folders.replace_folder(coming, target)
    assert not target.exists()
    folders.check_target(target)  # what a build begins with
    assert (target / CATALOG_FILE).read_text() == "artefacts"
    folders.replace_folder(coming, target)
    assert (target / CATALOG_FILE).read_text() == "coming"
    assert [path.name for path in tmp_path.iterdir()] == ["artefacts"]
