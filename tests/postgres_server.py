"""A temporary PostgreSQL cluster for tests: Debian's programs, an unprivileged user, a folder of its own in /tmp.

Tests import this module by name: pytest puts the folder of ``tests/conftest.py`` on the import path.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import psycopg
from loopback import free_port
from sqlalchemy import URL

USER, PASSWORD = "sensecheck", "p@ss/w:rd#1"
_START_SECONDS = 60.0
# It lives as long as the tests: nothing need survive a power cut.
_SETTINGS = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "shared_buffers": "16MB",
    "max_connections": "40",
    "listen_addresses": "127.0.0.1",
    "lc_messages": "C",
}
# Collates as people sort, unlike SQLite: underscores and case hardly count, so code that relies on order is found out.
_LOCALE = ("--encoding=UTF8", "--locale=C.UTF-8", "--locale-provider=icu", "--icu-locale=en-US")


@dataclass
class PostgresServer:
    """A running cluster. Connections over the socket need no password, those over loopback do.

    Attributes:
        folder: holds the data and the socket.
        port: of the loopback address and of the socket.
    """

    folder: Path
    port: int
    _numbers: Iterator[int] = field(default_factory=count)

    def url(self, database: str = "postgres", *, user: str = USER) -> URL:
        """The URL of a database, over the socket."""
        query = {"host": str(self.folder), "port": str(self.port)}
        return URL.create("postgresql+psycopg", user, database=database, query=query)

    def tcp_url(self, database: str = "postgres", *, user: str = USER, password: str | None = PASSWORD) -> URL:
        """The URL of a database, over loopback."""
        return URL.create("postgresql+psycopg", user, password, "127.0.0.1", self.port, database)

    def execute(self, *statements: str, database: str = "postgres") -> None:
        """Run statements as the superuser, each at once."""
        dsn = {"host": str(self.folder), "port": self.port, "user": USER, "dbname": database}
        with closing(psycopg.connect(**dsn, autocommit=True)) as connection:
            for statement in statements:
                connection.execute(statement.encode())

    def new_database(self) -> URL:
        """An empty database of a new name."""
        name = f"catalog_{next(self._numbers)}"
        self.execute(f"CREATE DATABASE {name}")
        return self.url(name)

    def drop(self, database: str | None) -> None:
        """Remove a database, whoever is connected to it."""
        self.execute(f"DROP DATABASE {database} WITH (FORCE)")


@contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    """Start a cluster for the block.

    Raises:
        RuntimeError: PostgreSQL is not installed, or does not start.
    """
    programs = _programs()
    folder = Path(tempfile.mkdtemp(prefix="sensecheck-postgres-"))  # short: a socket's path has at most 107 bytes
    owner = _owner()
    if owner is not None:
        os.chown(folder, owner.pw_uid, owner.pw_gid)
    try:
        (folder / "password").write_text(PASSWORD)
        (folder / "password").chmod(0o644)
        _run(programs / "initdb", "--pgdata", str(folder / "data"), "--username", USER, "--auth-local=trust",
             "--auth-host=scram-sha-256", "--pwfile", str(folder / "password"), "--no-sync", *_LOCALE)  # fmt: skip
        server = PostgresServer(folder, free_port())
        with _running(programs, server):
            yield server
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _running(programs: Path, server: PostgresServer) -> Iterator[None]:
    settings = {**_SETTINGS, "port": str(server.port), "unix_socket_directories": str(server.folder)}
    arguments = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
    # SIGQUIT ends it at once, without a shutdown of its own; sent too when this process is killed.
    command = [
        "setpriv",
        "--pdeathsig",
        "QUIT",
        *_as_owner(),
        str(programs / "postgres"),
        "-D",
        str(server.folder / "data"),
    ]
    log = server.folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen([*command, *arguments], cwd="/", stdout=output, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + _START_SECONDS
        while subprocess.run(
            [programs / "pg_isready", "-q", "-h", server.folder, "-p", str(server.port)], check=False
        ).returncode:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"PostgreSQL does not start:\n{log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.05)
        yield
    finally:
        process.send_signal(3)
        process.wait(30)


def _programs() -> Path:
    """The folder of PostgreSQL's programs; Debian keeps all but the client off the path.

    Raises:
        RuntimeError: there is none.
    """
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[4]))
    if found:
        return found[-1].parent
    if on_path := shutil.which("initdb"):
        return Path(on_path).resolve().parent
    raise RuntimeError(
        "PostgreSQL is not installed: apt-get install postgresql (`make test` does), or -m 'not postgres'."
    )


def _owner() -> pwd.struct_passwd | None:
    """Who runs the cluster: PostgreSQL refuses root."""
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return pwd.getpwnam("postgres" if "postgres" in names else "nobody")


def _as_owner() -> list[str]:
    owner = _owner()
    return [] if owner is None else [f"--reuid={owner.pw_uid}", f"--regid={owner.pw_gid}", "--clear-groups"]


def _run(*command: str | Path) -> None:
    done = subprocess.run(
        ["setpriv", *_as_owner(), *command] if _as_owner() else command,
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{command[0]}: {done.stderr}")
