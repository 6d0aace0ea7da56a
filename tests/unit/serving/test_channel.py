"""The way from the worker back to the API server, between two ends in this process."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import zmq

from sae_runtime.engines.features import PromptFeatures
from sae_runtime.engines.vllm.channel import Inbox, Outbox
from sae_runtime.errors import EngineError

PATIENCE = 10.0  # seconds; only a broken product waits that long


def features(tokens: int = 3) -> PromptFeatures:
    return PromptFeatures(
        content=np.arange(tokens) > 0,
        positions=np.array([1, 2], dtype=np.int32),
        latents=np.array([40, 7], dtype=np.int32),
        values=np.array([1.5, 0.25], dtype=np.float32),
    )


@pytest.fixture
def name() -> str:
    return uuid.uuid4().hex


@pytest.fixture
async def inbox(name: str) -> AsyncIterator[Inbox]:
    inbox = Inbox(name)
    yield inbox
    await inbox.close()


@pytest.fixture
def outbox(name: str) -> Iterator[Outbox]:
    outbox = Outbox(name)
    yield outbox
    outbox.close()


async def test_features_arrive_as_they_were_sent(inbox: Inbox, outbox: Outbox) -> None:
    async with inbox.expect() as (ticket, future):
        assert inbox.waiting == 1
        outbox.send(inbox.reply, ticket, features())
        got = await asyncio.wait_for(future, PATIENCE)
    assert isinstance(got, PromptFeatures)
    for field, array in vars(features()).items():
        np.testing.assert_array_equal(vars(got)[field], array)
    assert inbox.waiting == 0


async def test_residual_streams_keep_their_type(inbox: Inbox, outbox: Outbox) -> None:
    stream = torch.randn(5, 4).to(torch.bfloat16)
    async with inbox.expect() as (ticket, future):
        outbox.send(inbox.reply, ticket, stream)
        got = await asyncio.wait_for(future, PATIENCE)
    assert isinstance(got, torch.Tensor)
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, stream)


async def test_an_error_is_raised_where_the_reading_was_awaited(inbox: Inbox, outbox: Outbox) -> None:
    async with inbox.expect() as (ticket, future):
        outbox.send(inbox.reply, ticket, EngineError("No hidden states.", "Try again."))
        with pytest.raises(EngineError, match=r"No hidden states\. Try again\."):
            await asyncio.wait_for(future, PATIENCE)


async def test_each_asker_gets_its_own(inbox: Inbox, outbox: Outbox) -> None:
    async with inbox.expect() as (first, one), inbox.expect() as (second, two):
        outbox.send(inbox.reply, second, features(4))
        outbox.send(inbox.reply, first, features(3))
        assert [len(await asyncio.wait_for(f, PATIENCE)) for f in (one, two)] == [3, 4]


async def test_what_nobody_waits_for_is_dropped(inbox: Inbox, outbox: Outbox) -> None:
    async with inbox.expect() as (late, _):
        pass
    async with inbox.expect() as (ticket, future):
        outbox.send(inbox.reply, late, features())
        outbox.send(inbox.reply, uuid.uuid4().hex, features())
        outbox.send(inbox.reply, ticket, features())
        outbox.send(inbox.reply, ticket, features(9))  # twice: the first counts
        assert len(await asyncio.wait_for(future, PATIENCE)) == 3


async def test_garbage_breaks_nothing(inbox: Inbox, outbox: Outbox) -> None:
    async with inbox.expect() as (ticket, future), inbox.expect() as (other, second):
        socket = outbox._socket(inbox.reply)
        socket.send_multipart([b"one part"])
        socket.send_multipart([ticket.encode(), b"features", b"no safetensors"])
        with pytest.raises(EngineError, match="damaged"):
            await asyncio.wait_for(future, PATIENCE)
        outbox.send(inbox.reply, other, features())
        assert len(await asyncio.wait_for(second, PATIENCE)) == 3


async def test_damaged_tensors_are_an_error_and_the_inbox_lives_on(inbox: Inbox, outbox: Outbox) -> None:
    async with inbox.expect() as (ticket, future), inbox.expect() as (other, second):
        outbox._socket(inbox.reply).send_multipart([ticket.encode(), b"residual", b"no safetensors"])
        with pytest.raises(EngineError):
            await asyncio.wait_for(future, PATIENCE)
        outbox.send(inbox.reply, other, features())
        assert len(await asyncio.wait_for(second, PATIENCE)) == 3


def test_sending_to_nobody_neither_waits_nor_fails(outbox: Outbox) -> None:
    for number in range(100):
        outbox.send(4_000_000 + number, uuid.uuid4().hex, features())
    assert len(outbox._sockets) <= 64


async def test_no_file_is_made(inbox: Inbox, outbox: Outbox, name: str) -> None:
    assert inbox._socket.getsockopt_string(zmq.LAST_ENDPOINT) == f"ipc://@sensecheck-{name}-{inbox.reply}"
    assert not list(Path().glob(f"*{name}*"))


async def test_a_restarted_server_takes_the_place_of_the_old_one(name: str, outbox: Outbox) -> None:
    for _ in range(2):
        inbox = Inbox(name)
        async with inbox.expect() as (ticket, future):
            outbox.send(inbox.reply, ticket, features())
            assert len(await asyncio.wait_for(future, PATIENCE)) == 3
        await inbox.close()


_SENDER = """
import os, sys, zmq
os.setgid(int(sys.argv[3]))
os.setuid(int(sys.argv[3]))
context = zmq.Context()
socket = context.socket(zmq.PUSH)
socket.connect(sys.argv[1])
socket.send_multipart([sys.argv[2].encode(), b"error", b"false"])
context.destroy(linger=300)  # what was not taken by then is dropped
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
async def test_another_user_of_the_machine_is_not_listened_to(inbox: Inbox) -> None:
    address = inbox._socket.getsockopt_string(zmq.LAST_ENDPOINT)

    async def send(ticket: str, user: int) -> None:
        command = [sys.executable, "-c", _SENDER, address, ticket, str(user)]
        await asyncio.to_thread(subprocess.run, command, check=True)

    async with inbox.expect() as (guessed, future), inbox.expect() as (ticket, second):
        await send(guessed, 65534)
        await send(ticket, os.geteuid())
        with pytest.raises(EngineError, match="false"):
            await asyncio.wait_for(second, PATIENCE)
        assert not future.done()
