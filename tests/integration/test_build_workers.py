"""Builds whose long steps run on a real Ray cluster of this machine: the same files as by one process, whoever dies meanwhile."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from tiny_builds import cache, make_corpus, make_pack, one_thread, results, write_config
from tiny_models import make_model

from sae_runtime.build import harvest
from sae_runtime.build.config import load_config
from sae_runtime.build.features import describe, encoded, stability, validate
from sae_runtime.build.pipeline import run_build
from sae_runtime.build.ray_workers import RayWorkers, _check, _versions
from sae_runtime.build.workers import Job, Span, Workers, complete, open_workers, spans
from sae_runtime.errors import InputError, SensecheckError, WorkerError

SMALL_TASKS = {
    (harvest, "_SHARD_TOKENS"): 4_000,
    (encoded, "_ROWS"): 512,
    (describe, "_LATENTS"): 20,
    (validate, "_LATENTS"): 20,
    (stability, "_BLOCK"): 20,
}


@pytest.fixture(scope="module", autouse=True)
def small_tasks() -> Iterator[None]:
    """One thread, as everywhere with tiny models, and tasks so small that each step has several."""
    with one_thread(), pytest.MonkeyPatch.context() as patch:
        for (module, name), value in SMALL_TASKS.items():
            patch.setattr(module, name, value)
        yield


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a build of a tiny Llama."""
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "corpus").mkdir()
    model = make_model(folder / "llama", "llama")
    return write_config(folder / "build.yaml", model, make_corpus(folder / "corpus"), make_pack(folder / "few"))


@pytest.fixture(scope="module")
def alone(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cache of the build by one process."""
    home = tmp_path_factory.mktemp("alone")
    with cache(home):
        run_build(load_config(str(config)), until="concepts")
    return home


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayWorkers]:
    """Two workers of this machine."""
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import this file
    with RayWorkers(count=2) as running:
        yield running


@dataclass(frozen=True)
class Dying:
    """A job whose first task ends with its process, before or after the file is there; later ones are done."""

    job: Any
    dead: Path
    afterwards: bool

    @contextmanager
    def open(self) -> Iterator[Callable[[Any], None]]:
        """See :class:`Job`."""
        with self.job.open() as do:

            def mortal(task: Any) -> None:
                try:
                    self.dead.touch(exist_ok=False)
                except FileExistsError:
                    do(task)
                    return
                if self.afterwards:
                    do(task)
                else:
                    task.path.with_name(f".{task.path.name}.dead.partial").write_bytes(b"half a file")
                os.kill(os.getpid(), signal.SIGKILL)

            yield mortal


class Mortal:
    """Workers of which one is killed (SIGKILL) in each of some jobs; notes how many tasks every job had."""

    def __init__(self, crew: Workers, folder: Path, **afterwards: bool) -> None:
        self.crew, self.folder, self.afterwards = crew, folder, afterwards
        self.tasks: dict[str, int] = {}

    def run(self, job: Job[Any], tasks: Sequence[Any]) -> Generator[Any, None, None]:
        """See :class:`Workers`."""
        name = type(job).__name__
        self.tasks[name] = max(len(tasks), self.tasks.get(name, 0))
        chosen = Dying(job, self.folder / name, self.afterwards[name]) if name in self.afterwards else job
        yield from self.crew.run(chosen, tasks)


def test_a_build_whose_workers_are_killed_ends_with_the_same_files(
    config: Path, alone: Path, cluster: RayWorkers, tmp_path: Path
) -> None:
    deaths = {"Capture": False, "Score": True}
    mortal = Mortal(cluster, tmp_path, **deaths)
    with cache(tmp_path / "home"):
        run_build(load_config(str(config)), until="concepts", workers=mortal)
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == deaths.keys()
    assert mortal.tasks == {
        "Capture": 7, "Train": 2, "Encoded": 38, "Describe": 5, "Score": 5, "Compare": 5, "Try": 3, "Read": 4
    }  # fmt: skip
    ours, theirs = results(tmp_path / "home"), results(alone)
    assert ours.keys() == theirs.keys()
    assert [path for path in ours if ours[path] != theirs[path]] == []
    assert not list((tmp_path / "home").rglob("*.partial"))
    assert not list((tmp_path / "home").rglob("parts"))


DRIVER = """
import os, signal, sys
from sae_runtime.build import harvest
from sae_runtime.build.config import load_config
from sae_runtime.build.pipeline import run_build
from sae_runtime.build.workers import open_workers

class Watched:
    def run(self, job, tasks):
        for number, task in enumerate(self.crew.run(job, tasks)):
            yield task
            if number == 1:
                print(os.environ["RAY_AUTH_MODE"], flush=True)
                os.kill(os.getpid(), signal.SIGKILL)

harvest._SHARD_TOKENS = 4_000
workers = Watched()
with open_workers("ray:2") as workers.crew:
    run_build(load_config(sys.argv[1]), until="harvest", workers=workers)
"""


def test_a_build_that_is_killed_with_its_cluster_goes_on(
    config: Path, alone: Path, cluster: RayWorkers, tmp_path: Path
) -> None:
    with tempfile.TemporaryDirectory(prefix="sc", dir="/tmp") as scratch:
        environment = {"SENSECHECK_HOME": str(tmp_path), "OMP_NUM_THREADS": "1", "TMPDIR": scratch, "HOME": scratch}
        command = [sys.executable, "-W", "error", "-c", DRIVER, str(config)]
        ended = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)
        assert ended.returncode == -signal.SIGKILL, ended.stderr
        assert ended.stdout == "token\n"  # without which nobody else on this machine can use the cluster
        assert not (Path(scratch) / ".ray").exists()  # where Ray would keep it
        psutil.wait_procs([process for process in psutil.process_iter() if scratch in " ".join(_command(process))], 60)
        assert not [process for process in psutil.process_iter() if scratch in " ".join(_command(process))]
    done = {path: path.stat().st_mtime_ns for path in tmp_path.glob("builds/*/harvest-*/*.safetensors")}
    assert 2 <= len(done) < 7
    with cache(tmp_path):
        run_build(load_config(str(config)), until="harvest", workers=cluster)
    assert {path: path.stat().st_mtime_ns for path in done} == done
    theirs = {path: content for path, content in results(alone).items() if "/corpus-" in path or "/harvest-" in path}
    assert results(tmp_path) == theirs


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


@dataclass(frozen=True)
class Failing:
    """A job that fails in one of several ways."""

    how: str

    @contextmanager
    def open(self) -> Iterator[Callable[[Span], None]]:
        """See :class:`Job`."""

        def fail(span: Span) -> None:
            if self.how == "raises":
                raise InputError(f"{span.path.name} is wrong.", "Make it right.")
            if self.how == "breaks":
                raise ZeroDivisionError("by zero")
            if self.how == "dies":
                os.kill(os.getpid(), signal.SIGKILL)

        yield fail


@pytest.mark.parametrize(
    ("how", "kind", "message"),
    [
        ("raises", InputError, r"part-0000\.safetensors is wrong\. Make it right\."),
        ("breaks", WorkerError, r"A worker failed to make .*part-0000(.|\n)*by zero"),
        ("dies", WorkerError, r"3 workers died while they made .*part-0000"),
        ("writes nothing", WorkerError, r"A worker wrote .*part-0000.*, but it is not here.*SENSECHECK_HOME"),
    ],
)
def test_what_goes_wrong_in_a_worker_is_told(
    cluster: RayWorkers,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    how: str,
    kind: type[SensecheckError],
    message: str,
) -> None:
    monkeypatch.setattr("sae_runtime.build.ray_workers._VISIBLE", 0.5)
    with pytest.raises(kind, match=message):
        complete(cluster, Failing(how), spans(tmp_path, "part", 5, 5), "failing")


def test_nobody_but_this_machine_reaches_a_local_cluster(cluster: RayWorkers) -> None:
    processes = psutil.Process().children(recursive=True)
    names = {process.name() for process in processes}
    assert {"raylet", "gcs_server"} <= names
    listening = [
        connection.laddr
        for process in [psutil.Process(), *processes]
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN or connection.type == socket.SOCK_DGRAM
    ]
    assert len(listening) > 5
    assert {address.ip for address in listening} <= {"127.0.0.1", "::ffff:127.0.0.1"}


def test_workers_of_another_version_and_without_the_folder_refuse(tmp_path: Path) -> None:
    _check(_versions(), tmp_path)
    with pytest.raises(WorkerError, match=r"'torch': '1\.0'.*Install the same versions"):
        _check(_versions() | {"torch": "1.0"}, tmp_path)
    with pytest.raises(WorkerError, match=rf"does not see {tmp_path}/nowhere.*SENSECHECK_HOME"):
        _check(_versions(), tmp_path / "nowhere")


JOINED = """
import sys
from contextlib import contextmanager
from pathlib import Path
from sae_runtime.build.workers import complete, open_workers, spans

class Write:
    @contextmanager
    def open(self):
        yield lambda span: span.path.write_text(str(span.size))

with open_workers(sys.argv[1]) as workers:
    complete(workers, Write(), spans(Path(sys.argv[2]), "part", 5, 2), "write")
"""


def join(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run :data:`JOINED` on the cluster that is in use, to leave files in ``folder``."""
    address = ray.get_runtime_context().gcs_address
    command = [sys.executable, "-W", "error", "-c", JOINED, f"ray:{address}", str(folder)]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)


def test_a_stranger_without_the_token_is_turned_away(cluster: RayWorkers, tmp_path: Path) -> None:
    assert os.environ["RAY_AUTH_MODE"] == "token"
    ended = join(tmp_path, RAY_AUTH_TOKEN="0" * 64, RAY_NUM_REDIS_GET_RETRIES="1")
    assert "Ray cannot be used" in ended.stderr and "Authentication token is missing or incorrect" in ended.stderr
    assert ended.returncode and not list(tmp_path.iterdir())


def test_a_running_cluster_is_joined_and_left_running(cluster: RayWorkers, tmp_path: Path) -> None:
    ended = join(tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert [path.read_text() for path in sorted(tmp_path.iterdir())] == ["2", "2", "1"]
    assert [node["Alive"] for node in ray.nodes()] == [True]


def test_a_cluster_that_is_not_there_is_refused() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    for value in (f"ray:{address}", f"ray://{address}", "ray:nowhere"):
        with pytest.raises(WorkerError, match="No Ray cluster answers at"), open_workers(value):
            pass
