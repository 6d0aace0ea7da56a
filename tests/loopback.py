"""What tests share that stand-ins for servers need: free ports, and HTTP servers on a thread."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from socketserver import BaseServer


def free_ports(count: int) -> list[int]:
    """Different ports on loopback that nobody listens on."""
    with ExitStack() as stack:
        probes = [stack.enter_context(closing(socket.socket())) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def free_port() -> int:
    """A port on loopback that nobody listens on."""
    return free_ports(1)[0]


@contextmanager
def on_a_thread(server: BaseServer, end: Callable[[], None] | None = None) -> Iterator[None]:
    """``server`` answers while the block runs; ``end`` stops it, by default its ``shutdown``."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield
    finally:
        (end or server.shutdown)()
        thread.join()
