"""Several calls on a server that misbehaves: each failure keeps its place, and a call that is cancelled spoils no other."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from asking import NOTED, TEXT, Recorder, annotated_by, chain_of
from faulty_server import PATIENCE, SHORT, FaultyServer, Handler, body, by_text, fine, held, refusal
from langchain_core.messages import HumanMessage

from middleware import InspectionRequest, ServerSource, Stats
from sae_runtime.errors import InspectionTimeout

Call = Callable[..., Any]

FAULT_BY_NAME: dict[str, Callable[[Handler], None]] = {
    "broken": refusal(500),
    "slow": held,
    "refused": refusal(422),
    "garbage": body(b"<html>"),
}


def test_a_batch_in_which_some_prompts_fail(server: FaultyServer, source: ServerSource, call: Call) -> None:
    server.plan = [by_text(FAULT_BY_NAME)]
    inputs = [f"{TEXT} {name}" for name in ("fine", "broken", "slow", "fine too", "refused", "garbage")]
    annotator = annotated_by(source, 3.0)
    recorder = Recorder()
    answers = call(chain_of(annotator), "batch", inputs, config={"callbacks": [recorder]})
    assert [answer.content for answer in answers] == ["Wet feet."] * 6
    noted = [text + NOTED.removeprefix(TEXT) if "fine" in text else text for text in inputs]
    assert sorted(messages[0].content for messages in recorder.sent) == sorted(noted)
    assert annotator.stats == Stats(2, 2, Counter({"ServerError": 2, "timeout": 1, "InputError": 1}))


def test_a_batch_keeps_the_order_and_each_failure_its_place(
    server: FaultyServer, source: ServerSource, call: Call
) -> None:
    server.plan = [by_text(FAULT_BY_NAME)]
    names = ["fine", "broken", "slow", "fine too", "refused"]
    requests = [InspectionRequest([{"role": "user", "content": f"{TEXT} {name}"}], [0]) for name in names]
    outcomes = call(source, "inspect_batch", requests, deadline=3.0)
    kinds = [type(outcome).__name__ for outcome in outcomes]
    assert kinds == ["Reading", "ServerError", "InspectionTimeout", "Reading", "InputError"]


def test_a_batch_that_all_fails_raises_nothing_in_a_source(
    server: FaultyServer, source: ServerSource, call: Call
) -> None:
    server.plan = [held]
    requests = [InspectionRequest([{"role": "user", "content": TEXT}], [0])] * 5
    outcomes = call(source, "inspect_batch", requests, deadline=SHORT, limit=2)
    assert [type(outcome) for outcome in outcomes] == [InspectionTimeout] * 5
    assert len(server.asked) <= 2  # the others had no time left and were not sent


async def entered(server: FaultyServer) -> None:
    """Wait until the server has been asked for a reading."""
    assert await asyncio.to_thread(server.entered.acquire, timeout=PATIENCE)


async def test_a_cancelled_task_is_no_bypass_and_spoils_nothing(server: FaultyServer, source: ServerSource) -> None:
    server.plan = [*[held] * 6, fine]
    annotator = annotated_by(source)
    chain = chain_of(annotator)
    for _ in range(6):  # more than the failures that open the circuit
        task = asyncio.create_task(chain.ainvoke(TEXT))
        await entered(server)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert annotator.stats == Stats()
    assert (await chain.ainvoke(TEXT)).content == "Wet feet."
    assert annotator.stats == Stats(inspected=1, flagged=1)
    await source.aclose()


async def test_a_cancelled_stream_is_no_bypass_and_spoils_nothing(server: FaultyServer, source: ServerSource) -> None:
    server.plan = [held, fine]
    annotator = annotated_by(source)
    chain = chain_of(annotator)

    async def streamed() -> str:
        return "".join([chunk.content async for chunk in chain.astream(TEXT)])

    task = asyncio.create_task(streamed())
    await entered(server)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert annotator.stats == Stats()
    assert await streamed() == "Wet feet."
    assert annotator.stats == Stats(inspected=1, flagged=1)
    await source.aclose()


async def test_a_stream_that_is_left_early_has_been_read(server: FaultyServer, source: ServerSource) -> None:
    annotator = annotated_by(source)
    stream = chain_of(annotator).astream(TEXT)
    assert (await anext(stream)).content == "W"
    await stream.aclose()
    assert annotator.stats == Stats(inspected=1, flagged=1)
    await source.aclose()


async def test_one_of_several_callers_may_be_cancelled(server: FaultyServer, source: ServerSource) -> None:
    server.plan = [by_text({"slow": held})]
    annotator = annotated_by(source)
    slow = asyncio.create_task(annotator.ainvoke(f"{TEXT} slow"))
    await entered(server)
    quick = asyncio.create_task(annotator.ainvoke(TEXT))
    assert await quick == [HumanMessage(NOTED)]
    slow.cancel()
    with pytest.raises(asyncio.CancelledError):
        await slow
    assert annotator.stats == Stats(inspected=1, flagged=1)
    await source.aclose()


def test_each_event_loop_has_its_own_connections_and_a_closed_one_leaves_none(
    server: FaultyServer, source: ServerSource
) -> None:
    annotator = annotated_by(source)
    for _ in range(4):  # a script that calls asyncio.run for each prompt
        assert asyncio.run(annotator.ainvoke(TEXT)) == [HumanMessage(NOTED)]
        assert annotator.invoke(TEXT) == [HumanMessage(NOTED)]
    gc.collect()
    assert annotator.stats == Stats(inspected=8, flagged=8)
    assert len(source._clients) <= 2  # that of synchronous calls, and of the last loop


def test_two_event_loops_may_use_a_source_at_once(server: FaultyServer, source: ServerSource) -> None:
    annotator = annotated_by(source)
    both = threading.Barrier(2)

    async def several() -> list[Any]:
        await asyncio.to_thread(both.wait, PATIENCE)
        return [await annotator.ainvoke(TEXT) for _ in range(5)]

    results: list[Any] = []
    threads = [threading.Thread(target=lambda: results.append(asyncio.run(several()))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [[[HumanMessage(NOTED)]] * 5] * 2
    assert annotator.stats == Stats(inspected=10, flagged=10)
