"""The files of the prompt log: mode 600, bounded in size, number and age, no symbolic links.

A file covers at most ``days / files`` days and ``max_bytes`` bytes, then it becomes ``FILE.1``, the older ones ``FILE.2``
and so on, and the oldest goes. A file whose last record is older than ``days`` goes, too. So no record stays longer than
``days`` and one file's span beyond. What an earlier start kept beyond ``files`` files goes at the start.

A symbolic link, a file of another user or with a second name, or anything but a file is refused, both at the start and
when files are exchanged. The file is locked: two servers cannot write the same one.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import stat
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from sae_runtime.errors import InputError

VARIABLE = "SENSECHECK_SERVE_PROMPT_LOG"
"""Environment variable by which the server process is told its options."""
_DAY = 86_400.0
_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK  # a pipe must not block
_REMEDY = "Name a file of your own, or one that does not exist yet, in a folder that you can write to."


@dataclass(frozen=True)
class PromptLogOptions:
    """Where prompts are logged, and how much is kept.

    Attributes:
        path: the current file.
        max_bytes: a file is not continued beyond so many bytes, unless a single record is longer.
        files: number of files, the current one included.
        days: age at which files are deleted.
    """

    path: str
    max_bytes: int = 10_000_000
    files: int = 10
    days: float = 30.0

    def __post_init__(self) -> None:
        if self.max_bytes < 1 or self.files < 1 or not self.days > 0:
            raise InputError("Size, number and age of prompt logs must be positive.", "Check the options.")

    def to_json(self) -> str:
        """For the environment of the server process."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> PromptLogOptions:
        """The inverse of :meth:`to_json`."""
        return cls(**json.loads(text))


class PromptFiles:
    """The files: :meth:`append` is for one thread.

    Raises:
        InputError: the file cannot be written, or is none that prompts should be written to.
    """

    def __init__(self, options: PromptLogOptions, *, now: Callable[[], float] = time.time) -> None:
        self._options = options
        self._now = now
        path = Path(options.path)
        self._name = path.name
        self._file = -1
        try:
            # Everything happens relative to this folder, whatever becomes of its name.
            self._folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise InputError(f"The folder of {options.path} cannot be opened: {error.strerror}.", _REMEDY) from error
        try:
            self._open()
            self._keep_no_more_files()
        except OSError as error:
            self.close()
            raise InputError(f"Prompts cannot be logged to {options.path}: {why(error)}.", _REMEDY) from error

    def append(self, line: bytes) -> None:
        """Write one line whole, or nothing of it.

        Raises:
            OSError: the disk did not take it.
        """
        self.look_after()
        if self._file < 0 or self._moved():
            self._reopen()
        size = os.fstat(self._file).st_size
        if size and size + len(line) > self._options.max_bytes:
            self._begin_anew()
            size = 0
        try:
            written = os.write(self._file, line)
            if written < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, size)
            raise

    def look_after(self) -> None:
        """Begin a new file when the current one covers its time; delete the files that are too old."""
        age = self._options.days * _DAY
        if self._file >= 0 and os.fstat(self._file).st_size and self._now() - self._began > age / self._options.files:
            self._begin_anew()
        for number in range(1, self._options.files):
            with contextlib.suppress(FileNotFoundError):
                name = f"{self._name}.{number}"
                if self._now() - os.stat(name, dir_fd=self._folder, follow_symlinks=False).st_mtime > age:
                    os.unlink(name, dir_fd=self._folder)

    def close(self) -> None:
        """Give the file free."""
        for opened in (self._file, self._folder):
            if opened >= 0:
                os.close(opened)
        self._file = self._folder = -1

    def _keep_no_more_files(self) -> None:
        """Delete what an earlier start kept beyond the number of files; nothing else looks at those."""
        numbered = re.compile(rf"{re.escape(self._name)}\.([1-9][0-9]{{0,5}})")
        names = os.listdir(self._folder)  # noqa: PTH208 (the folder is open; its name may mean another one by now)
        for found in filter(None, map(numbered.fullmatch, names)):
            if int(found[1]) >= self._options.files:
                os.unlink(found[0], dir_fd=self._folder)

    def _open(self) -> None:
        opened = os.open(self._name, _FLAGS, 0o600, dir_fd=self._folder)
        try:
            found = os.fstat(opened)
            if not stat.S_ISREG(found.st_mode):
                raise OSError(errno.EINVAL, "it is no file")
            if found.st_uid != os.geteuid() or found.st_nlink != 1:
                raise OSError(errno.EPERM, "it belongs to another user, or has a second name")
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.fchmod(opened, 0o600)
        except OSError:
            os.close(opened)
            raise
        self._file = opened
        self._began = self._first_time() if found.st_size else self._now()

    def _begin_anew(self) -> None:
        """Number the files up; the oldest is overwritten."""
        for number in range(self._options.files - 1, 0, -1):
            with contextlib.suppress(FileNotFoundError):
                self._rename(self._name + (f".{number - 1}" if number > 1 else ""), f"{self._name}.{number}")
        if self._options.files == 1:
            os.unlink(self._name, dir_fd=self._folder)
        self._reopen()

    def _reopen(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        self._open()

    def _moved(self) -> bool:
        """Whether somebody has renamed or deleted the current file, as ``logrotate`` does."""
        try:
            return os.stat(self._name, dir_fd=self._folder).st_ino != os.fstat(self._file).st_ino
        except FileNotFoundError:
            return True

    def _rename(self, old: str, new: str) -> None:
        os.rename(old, new, src_dir_fd=self._folder, dst_dir_fd=self._folder)

    def _first_time(self) -> float:
        """When the current file was begun, by its first record; a file without one counts as begun when last written."""
        opened = os.open(self._name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._folder)
        with os.fdopen(opened, "rb") as file:
            try:
                return datetime.fromisoformat(json.loads(file.readline(self._options.max_bytes))["time"]).timestamp()
            except (ValueError, KeyError, TypeError):
                return os.fstat(opened).st_mtime


def check_prompt_log(options: PromptLogOptions, *, reads: bool) -> None:
    """Refuse, before a server is started, a log that could not be written or would stay empty.

    Args:
        options: of the log.
        reads: whether the server will read prompts at all; others are not logged.

    Raises:
        InputError: it is refused.
    """
    if not reads:
        raise InputError("No prompt will be read, so none can be logged.", "Leave out --log-prompts.")
    PromptFiles(options).close()


def why(error: OSError) -> str:
    """What is wrong with the file or the disk, in words."""
    if error.errno == errno.ELOOP:
        return "it is a symbolic link"
    if error.errno in (errno.EWOULDBLOCK, errno.EACCES) and isinstance(error, BlockingIOError):
        return "another server writes to it"
    return error.strerror or type(error).__name__
