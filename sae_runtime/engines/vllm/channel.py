"""The way back: from the worker that encoded a prompt straight to the API server that asked.

vLLM returns a connector's results when a request has *finished*. A reading is wanted while the answer is only
beginning, so the worker sends it over a ZeroMQ socket as soon as the prompt is computed. The socket has an abstract
Unix address: no file is made, and nothing is left when a process dies. Only processes of the same user are listened to.
A message is ``ticket, kind, payload``.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import uuid
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import torch
import zmq
import zmq.asyncio
from safetensors.torch import load, save

from sae_runtime.engines.features import PromptFeatures
from sae_runtime.errors import EngineError

logger = logging.getLogger("sensecheck")

FEATURES, RESIDUAL, ERROR = b"features", b"residual", b"error"
_PEERS = 64  # open sockets of a worker; there is one per API server process
_WAITING = 1000  # messages kept for an API server that does not take them


def _address(name: str, pid: int) -> str:
    return f"ipc://@sensecheck-{name}-{pid}"


class Outbox:
    """The worker's end: sends, never blocks, never raises."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._context = zmq.Context()
        self._sockets: OrderedDict[int, zmq.Socket[bytes]] = OrderedDict()

    def send(self, reply: int, ticket: str, result: PromptFeatures | torch.Tensor | EngineError) -> None:
        """Send ``result`` to the API server with process id ``reply``; what cannot be delivered is dropped."""
        if isinstance(result, PromptFeatures):
            kind, payload = FEATURES, result.to_bytes()
        elif isinstance(result, torch.Tensor):
            kind, payload = RESIDUAL, save({"residual": result.contiguous()})
        else:
            kind, payload = ERROR, str(result).encode()
        try:
            self._socket(reply).send_multipart([ticket.encode(), kind, payload], flags=zmq.NOBLOCK)
        except zmq.ZMQError as error:
            logger.warning("a reading was dropped: %s", error)

    def close(self) -> None:
        """Drop what was not delivered."""
        self._context.destroy(linger=0)

    def _socket(self, reply: int) -> zmq.Socket[bytes]:
        if reply not in self._sockets:
            socket = self._context.socket(zmq.PUSH)
            socket.linger = 0
            socket.sndhwm = _WAITING
            socket.connect(_address(self._name, reply))
            self._sockets[reply] = socket
            if len(self._sockets) > _PEERS:
                self._sockets.popitem(last=False)[1].close()
        self._sockets.move_to_end(reply)
        return self._sockets[reply]


class Inbox:
    """The API server's end, for one event loop."""

    def __init__(self, name: str) -> None:
        self.reply = os.getpid()
        self._context = zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.PULL)
        self._socket.linger = 0
        # An abstract address has no permissions: connections of other users' processes are closed by this filter.
        self._socket.setsockopt(zmq.IPC_FILTER_UID, os.geteuid())
        self._socket.bind(_address(name, self.reply))
        self._expected: dict[bytes, asyncio.Future[PromptFeatures | torch.Tensor]] = {}
        self._task = asyncio.create_task(self._receive())

    @asynccontextmanager
    async def expect(self) -> AsyncIterator[tuple[str, asyncio.Future[PromptFeatures | torch.Tensor]]]:
        """A fresh ticket and the future of its result; a result that comes after the block is ignored."""
        ticket = uuid.uuid4().hex
        future: asyncio.Future[PromptFeatures | torch.Tensor] = asyncio.get_running_loop().create_future()
        self._expected[ticket.encode()] = future
        try:
            yield ticket, future
        finally:
            del self._expected[ticket.encode()]
            future.cancel()

    @property
    def waiting(self) -> int:
        """Number of readings that are being waited for."""
        return len(self._expected)

    async def close(self) -> None:
        """Stop receiving."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        self._context.destroy(linger=0)

    async def _receive(self) -> None:
        while True:
            message = await self._socket.recv_multipart()
            future = self._expected.get(message[0]) if len(message) == 3 else None
            if future is None or future.done():
                continue
            try:
                future.set_result(_decode(message[1], message[2]))
            except EngineError as error:
                future.set_exception(error)


def _decode(kind: bytes, payload: bytes) -> PromptFeatures | torch.Tensor:
    if kind == FEATURES:
        return PromptFeatures.from_bytes(payload)
    if kind == RESIDUAL:
        try:
            return load(payload)["residual"]
        except Exception as error:  # safetensors has its own exception class
            raise EngineError(f"The residual stream is damaged: {error}.", "Read the prompt again.") from error
    raise EngineError(payload.decode("utf-8", errors="replace"))
