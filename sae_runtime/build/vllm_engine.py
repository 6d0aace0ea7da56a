"""Capturing residual streams with vLLM in this process, for harvests on GPU machines.

The same connector as in serving hands out the residual stream (:mod:`sae_runtime.engines.vllm`), so prompts are batched continuously and
run on vLLM's kernels. On a CPU the transformers engine is the better choice: it computes no layer beyond the one read.
"""

from __future__ import annotations

import asyncio
import os
import threading
import uuid
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from sae_runtime.engines.vllm.channel import Inbox
from sae_runtime.engines.vllm.options import ENVIRONMENT, in_worker_arguments
from sae_runtime.errors import EngineError
from sae_runtime.serving.readers import WorkerReader

T = TypeVar("T")


class VLLMEngine:
    """The residual stream after one layer, captured by vLLM. Close it when it is no longer needed.

    Args:
        folder: transformers model folder.
        layer: 0-based index L; what is captured is the residual stream after layer L.
        dtype: compute dtype.
        context_length: longest sequence in tokens.

    Raises:
        EngineError: vLLM is not installed, or cannot hand out this model's hidden states.
    """

    def __init__(self, folder: Path, layer: int, *, dtype: torch.dtype, context_length: int) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="sensecheck-vllm", daemon=True)
        self._thread.start()
        try:
            self._engine, self._inbox = self._run(_open(folder, layer, dtype, context_length))
        except Exception as error:
            self._stop()
            raise EngineError(
                f"vLLM cannot read {folder}: {error}.", "Set `harvest_engine: transformers` in the configuration."
            ) from error
        self._reader: Any = WorkerReader(self._engine, self._inbox)

    def residual(self, sequences: list[list[int]]) -> list[Tensor]:
        """Residual stream per sequence, ``[tokens, d_model]``, in the order given.

        Raises:
            EngineError: a sequence could not be captured.
        """

        async def together() -> list[Tensor]:
            return list(await asyncio.gather(*(self._reader.residual(ids) for ids in sequences)))

        return self._run(together())

    def close(self) -> None:
        """Stop vLLM."""

        async def stop() -> None:
            await self._inbox.close()
            self._engine.shutdown()

        self._run(stop())
        self._engine = self._reader = None  # vLLM cleans up once more when its engine is forgotten
        self._stop()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _open(folder: Path, layer: int, dtype: torch.dtype, context_length: int) -> tuple[Any, Inbox]:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser
    from vllm.v1.engine.async_llm import AsyncLLM

    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    channel = uuid.uuid4().hex
    arguments = [
        "--model", str(folder), "--dtype", str(dtype).removeprefix("torch."), "--enforce-eager",
        "--max-model-len", str(context_length + 1),  # one place for the token that is sampled after a prompt
        *in_worker_arguments(None, layer, channel, residual=True),
    ]  # fmt: skip
    parser = AsyncEngineArgs.add_cli_args(FlexibleArgumentParser())
    engine = AsyncLLM.from_engine_args(AsyncEngineArgs.from_cli_args(parser.parse_args(arguments)))
    return engine, Inbox(channel)
