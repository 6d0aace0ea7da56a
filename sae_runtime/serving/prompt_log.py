"""The prompt log, which a deployer has to ask for (``serve --log-prompts FILE``): redacted prompts as JSON lines.

One thread of its own redacts and writes, so that no request waits for the disk; what the disk does not take is counted
and lost, never an error of a request. It also deletes files that have become too old when nothing is asked any more.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import os
import queue
import threading
from typing import Any

from sae_runtime.redact import redact
from sae_runtime.serving.metrics import PROMPT_LOG
from sae_runtime.serving.prompt_files import VARIABLE, PromptFiles, PromptLogOptions, why

logger = logging.getLogger("sensecheck")

_WAITING = 1000  # records that may wait for the disk
_LOOK_AFTER = 600.0  # seconds without a record after which the age of the files is checked


class PromptLog:
    """Takes records and writes them in a thread of its own. Neither :meth:`put` nor the thread ever raises.

    Raises:
        InputError: as :class:`PromptFiles`.
    """

    def __init__(self, options: PromptLogOptions) -> None:
        self._files = PromptFiles(options)
        self._waiting: queue.Queue[dict[str, Any] | None] = queue.Queue(_WAITING)
        self._failing = False
        self._thread = threading.Thread(target=self._write_all, name="sensecheck-prompts", daemon=True)
        self._thread.start()

    @classmethod
    def from_environment(cls) -> PromptLog | None:
        """The prompt log that ``sensecheck serve`` was asked for, if it was."""
        options = os.environ.get(VARIABLE)
        if not options:
            return None
        log = cls(PromptLogOptions.from_json(options))
        atexit.register(log.close)
        return log

    def put(self, record: dict[str, Any]) -> None:
        """Log a record, see :func:`redacted`; it must not be changed afterwards."""
        try:
            self._waiting.put_nowait(record)
        except queue.Full:
            PROMPT_LOG.labels("dropped").inc()

    def close(self, timeout: float = 5.0) -> None:
        """Write what waits, at most so many seconds, and give the file free."""
        with contextlib.suppress(queue.Full):
            self._waiting.put(None, timeout=timeout)
        self._thread.join(timeout)

    def _write_all(self) -> None:
        while True:
            try:
                record = self._waiting.get(timeout=_LOOK_AFTER)
            except queue.Empty:
                with contextlib.suppress(OSError):
                    self._files.look_after()
                continue
            if record is None:
                self._files.close()
                return
            self._write(record)

    def _write(self, record: dict[str, Any]) -> None:
        try:
            self._files.append((json.dumps(redacted(record)) + "\n").encode())
        except Exception as error:
            PROMPT_LOG.labels("failed").inc()
            if not self._failing:  # one line, not one for each prompt
                logger.error(
                    "prompts cannot be logged: %s", why(error) if isinstance(error, OSError) else type(error).__name__
                )
            self._failing = True
        else:
            PROMPT_LOG.labels("written").inc()
            self._failing = False


def redacted(value: Any) -> Any:
    """A copy of plain data in which every string value is redacted; keys, and the record's ``time`` and ``id``, stay."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, dict):
        return {name: item if name in ("time", "id", "trace") else redacted(item) for name, item in value.items()}
    return [redacted(item) for item in value] if isinstance(value, list | tuple) else value
