"""One event loop in a thread of its own, for synchronous callers of asynchronous code.

A deadline that holds for a whole request, with name resolution, every byte of the answer and second tries, can be kept by
an event loop only: blocking calls know limits for each of their steps.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

_lock = threading.Lock()
_started: tuple[int, asyncio.AbstractEventLoop] | None = None  # in which process, since threads do not survive a fork


def run(work: Coroutine[Any, Any, T]) -> T:
    """The result of ``work``, which runs in the background loop; works in and outside other event loops.

    A caller that is interrupted cancels it.
    """
    future = asyncio.run_coroutine_threadsafe(work, _loop())
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


def _loop() -> asyncio.AbstractEventLoop:
    global _started
    with _lock:
        if _started is None or _started[0] != os.getpid():
            loop = asyncio.new_event_loop()
            threading.Thread(target=loop.run_forever, name="sensecheck-loop", daemon=True).start()
            _started = os.getpid(), loop
        return _started[1]
