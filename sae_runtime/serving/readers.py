"""Where the features of a served prompt come from: vLLM's worker, or a transformers engine beside it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from contextvars import copy_context
from functools import partial
from typing import Any, Protocol, cast

from torch import Tensor

from sae_runtime import tracing
from sae_runtime.detector import Inspector, Plan
from sae_runtime.engines.features import PromptFeatures
from sae_runtime.engines.vllm.channel import Inbox
from sae_runtime.engines.vllm.requests import ReadRequest, digest
from sae_runtime.errors import EngineError

GRACE = 0.3  # seconds that a reading may come after the first token; it is sent before it
_SIDECAR_SLOTS = 2  # a reading beside vLLM is one forward pass on the server's own cores

Features = asyncio.Future[PromptFeatures]


class Reader(Protocol):
    """Supplies features; both methods raise :class:`~sae_runtime.errors.EngineError` when they cannot."""

    async def features(self, plan: Plan) -> PromptFeatures:
        """The features that ``plan`` needs."""

    def riding(self, plan: Plan) -> AbstractAsyncContextManager[tuple[dict[str, Any] | None, Features]]:
        """Read a prompt while the engine answers it: the ``kv_transfer_params`` to send along, and the result's future."""


class WorkerReader:
    """Reads inside vLLM's worker (:mod:`sae_runtime.engines.vllm`).

    Args:
        engine: vLLM's engine client.
        inbox: where the worker's results arrive.
    """

    def __init__(self, engine: Any, inbox: Inbox) -> None:
        self._engine = engine
        self.inbox = inbox

    async def features(self, plan: Plan) -> PromptFeatures:
        """See :class:`Reader`. The prompt is computed (or found in the prefix cache) and one token is sampled."""
        async with self.riding(plan) as (params, future):
            return cast("PromptFeatures", await self._prefill(plan.chat.token_ids, params, future))

    async def residual(self, token_ids: list[int]) -> Tensor:
        """The residual stream ``[tokens, d_model]`` of a prompt, where the server was started for it."""
        async with self.inbox.expect() as (ticket, future):
            request = ReadRequest(ticket=ticket, reply=self.inbox.reply, digest=digest(token_ids), residual=True)
            return cast("Tensor", await self._prefill(token_ids, request.as_params(), future))

    @asynccontextmanager
    async def riding(self, plan: Plan) -> AsyncIterator[tuple[dict[str, Any], Features]]:
        """See :class:`Reader`."""
        async with self.inbox.expect() as (ticket, future):
            request = ReadRequest(
                ticket=ticket, reply=self.inbox.reply, digest=digest(plan.chat.token_ids), latents=plan.latents
            )
            yield request.as_params(), cast("Features", future)

    async def _prefill(self, token_ids: list[int], params: Any, future: asyncio.Future[Any]) -> Any:
        from vllm import SamplingParams

        sampling = SamplingParams(
            max_tokens=1, temperature=0.0, detokenize=False, extra_args={"kv_transfer_params": params}
        )
        name = f"sensecheck-{params['sensecheck']['ticket']}"
        generation = asyncio.create_task(
            _exhaust(
                self._engine.generate(
                    {"prompt_token_ids": token_ids},
                    sampling,
                    request_id=name,
                    trace_headers=tracing.outgoing(recorded=True) or None,  # vLLM's span becomes a child of ours
                )
            )
        )
        try:
            await asyncio.wait({generation, future}, return_when=asyncio.FIRST_COMPLETED)
            if not future.done():
                generation.result()  # the engine's own error, if there was one
            return await asyncio.wait_for(future, GRACE)
        except TimeoutError as error:
            raise EngineError("The worker sent no reading.", "See the server's log.") from error
        finally:
            generation.cancel()  # once the reading is here nothing else is wanted
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await generation


class SidecarReader:
    """Reads with the transformers engine in the API server's process; for models that vLLM cannot read in its worker."""

    def __init__(self, inspector: Inspector) -> None:
        self._inspector = inspector
        # Threads of its own, not a semaphore: a client that leaves ends the waiting, but not a forward pass under way.
        self._threads = ThreadPoolExecutor(_SIDECAR_SLOTS, "sensecheck-sidecar")

    async def features(self, plan: Plan) -> PromptFeatures:
        """See :class:`Reader`."""
        work = partial(copy_context().run, self._inspector.features, [plan])
        return (await asyncio.get_running_loop().run_in_executor(self._threads, work))[0]

    @asynccontextmanager
    async def riding(self, plan: Plan) -> AsyncIterator[tuple[None, Features]]:
        """See :class:`Reader`."""
        task = asyncio.create_task(self.features(plan))
        try:
            yield None, task
        finally:
            task.cancel()


async def _exhaust(generation: AsyncIterator[Any]) -> None:
    async for _ in generation:
        pass
