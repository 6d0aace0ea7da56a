"""Debian's HAProxy in front of replicas, with the configuration that ``docs/how-to/rolling-update.md`` shows.

Tests import this module by name: pytest puts the folder of ``tests/conftest.py`` on the import path.
"""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from loopback import free_port

PAGE = Path(__file__).parents[1] / "docs" / "how-to" / "rolling-update.md"
_START_SECONDS = 30.0
_BACKEND, _SOCKET = "replicas", "/run/haproxy/admin.sock"


class Proxy:
    """A running HAProxy: ``url`` is its root."""

    def __init__(self, url: str, admin: Path) -> None:
        self.url, self._admin = url, admin

    def command(self, text: str) -> str:
        """What the runtime interface answers."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(self._admin))
            connection.sendall(f"{text}\n".encode())
            return b"".join(iter(lambda: connection.recv(65536), b"")).decode()

    def drain(self, name: str) -> None:
        """Send no new requests to a replica; those under way go on."""
        assert not self.command(f"set server {_BACKEND}/{name} state drain").strip()

    def ready(self, name: str) -> None:
        """Send requests to it again, as soon as its health says so."""
        assert not self.command(f"set server {_BACKEND}/{name} state ready").strip()

    def sessions(self, name: str) -> int:
        """How many requests a replica is answering."""
        return int(self._stat(name)["scur"])

    def up(self, name: str) -> bool:
        """Whether a replica gets requests."""
        return self._stat(name)["status"] == "UP"

    def _stat(self, name: str) -> dict[str, str]:
        head, *lines = self.command("show stat").lstrip("# ").splitlines()
        rows = [dict(zip(head.split(","), line.split(","), strict=False)) for line in lines if line]
        (row,) = [row for row in rows if (row["pxname"], row["svname"]) == (_BACKEND, name)]
        return row


@contextmanager
def haproxy(replicas: Mapping[str, str]) -> Iterator[Proxy]:
    """Start it before the ``replicas``, root addresses by the names in the page's configuration; they are up by then."""
    program = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin")
    assert program, "HAProxy is missing; `make test` installs it"
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="haproxy-") as folder:
        admin, file = Path(folder) / "admin.sock", Path(folder) / "haproxy.cfg"
        file.write_text(configuration(port, admin, replicas), "utf-8")
        with subprocess.Popen([program, "-db", "-f", file]) as process:
            try:
                proxy = Proxy(f"http://127.0.0.1:{port}", admin)
                end = time.monotonic() + _START_SECONDS
                while not (admin.exists() and all(map(proxy.up, replicas))):
                    assert process.poll() is None and time.monotonic() < end, "HAProxy or a replica is not up"
                    time.sleep(0.05)
                yield proxy
            finally:
                process.terminate()


def configuration(port: int, admin: Path, replicas: Mapping[str, str]) -> str:
    """The page's file with the test's addresses."""
    (text,) = re.findall(r"^```text\n(global\n.*?)^```$", PAGE.read_text("utf-8"), re.M | re.S)
    changes = {_SOCKET: str(admin), "bind 127.0.0.1:8000": f"bind 127.0.0.1:{port}"}
    for (name, url), documented in zip(replicas.items(), (8001, 8002), strict=True):
        changes[f"server {name} 127.0.0.1:{documented}"] = f"server {name} {url.removeprefix('http://')}"
    for shown, used in changes.items():
        assert text.count(shown) == 1, f"{PAGE.name} does not show {shown!r} once"
        text = text.replace(shown, used)
    return text
