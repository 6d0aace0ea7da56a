"""The server's process dies, or its parent does: none of its own processes stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults.making import alive, eventually

from sae_runtime.serving import ModelServer, server

# Stands for vLLM's API server: a worker that outlives it unless somebody ends it, and says where it is.
API_SERVER = textwrap.dedent(
    """
    import signal, subprocess, sys, time
    worker = subprocess.Popen([sys.executable, "-c", "import signal, time; {worker}; print(flush=True); time.sleep(600)"],
                              stdout=subprocess.PIPE)
    worker.stdout.readline()
    {server}
    open(sys.argv[1] + ".coming", "w").write(str(worker.pid))
    import os
    os.replace(sys.argv[1] + ".coming", sys.argv[1])
    time.sleep(600)
    """
)
HEEDS = "0"  # signals as they come
IGNORES = "signal.signal(signal.SIGTERM, signal.SIG_IGN)"


class Running(ModelServer):
    """A stand-in for a running server, and its worker's number."""

    worker = 0


@pytest.fixture(params=[HEEDS, IGNORES], ids=["worker heeds", "worker ignores"])
def running(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    yield from begin(tmp_path, monkeypatch, worker=request.param, server_does=HEEDS)


def begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, worker: str, server_does: str) -> Iterator[Running]:
    monkeypatch.setattr(server, "_STOP_SECONDS", 0.5)
    monkeypatch.setattr(server, "_LEFT_SECONDS", 0.5)
    code = API_SERVER.format(worker=worker, server=server_does)
    told = tmp_path / "worker"
    process = subprocess.Popen([sys.executable, "-c", code, str(told)], stdin=subprocess.PIPE, start_new_session=True)
    eventually(told.exists)
    running = Running(process, "http://127.0.0.1:1", "tiny", tmp_path / "log")
    running.worker = int(told.read_text())
    assert alive(running.worker)
    yield running
    for pid in (running.worker, process.pid):
        if alive(pid):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def test_a_server_that_was_killed_leaves_no_worker_behind(running: Running) -> None:
    running.process.kill()
    running.process.wait()
    assert alive(running.worker)
    running.stop()
    eventually(lambda: not alive(running.worker))


def test_a_server_that_does_not_stop_is_ended_with_its_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for running in begin(tmp_path, monkeypatch, worker=IGNORES, server_does=IGNORES):
        running.stop()
        assert running.process.returncode == -signal.SIGKILL
        eventually(lambda: not alive(running.worker))  # noqa: B023 (there is one)


def test_stopping_twice_is_no_error(running: Running) -> None:
    running.stop()
    running.stop()
    eventually(lambda: not alive(running.worker))


def test_the_server_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    """However that one ends: the server has the other end of its pipe (``sae_runtime/serving/child.py``)."""
    code = textwrap.dedent(
        """
        import os, runpy, sys, time
        from sae_runtime.serving import child
        runpy.run_module = lambda *args, **options: (print(flush=True), time.sleep(600))
        child.main()
        """
    )
    starter = textwrap.dedent(
        """
        import subprocess, sys, time
        child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        child.stdout.readline()
        print(child.pid, flush=True)
        time.sleep(600)
        """
    )
    parent = subprocess.Popen([sys.executable, "-c", starter, code], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert alive(pid)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    eventually(lambda: not alive(pid))
