"""What reading costs beside plain vLLM, side by side in one run: ``python -m benchmarks.overhead``.

Four servers of the same model, equal but for the reading, answer the same prompts in turn, over several interleaved rounds:

- ``plain``: vLLM without Sensecheck (the baseline);
- ``not asked``: ours, a request that does not opt in;
- ``one call, clean`` / ``one call, flagged``: ours, annotated in one call; nothing / something is flagged;
- ``two calls, clean`` / ``two calls, flagged``: ours, ``/v1/sae/inspect`` first, then the answer;
- ``hooks``: vLLM in eager mode with a forward hook that copies the residual to the host;
- ``sidecar``: a transformers engine beside vLLM reads, then the answer.

Every prompt ends in a mention, so every inspected prompt is really read. ``cold``: no prompt shares a prefix with an
earlier one; ``warm``: the same prompts again. Reported are medians over rounds of the time to the first token (from the
first request on, the mean over concurrent users) and of output tokens per second, with ratios to plain.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import defaultdict
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from time import perf_counter
from typing import Annotated, Any

import httpx
import typer
from rich.console import Console
from rich.table import Table

from sae_runtime.detector.artefacts import Artefacts
from sae_runtime.engines.chat import ChatEncoder
from sae_runtime.models.manifest import SMALL_MODEL
from sae_runtime.progress import progress
from sae_runtime.serving import ModelServer, ServerOptions

_QUESTION = " The seal looks worn out. Should I do something about it?"  # read as a closure; in biology a misread
_FILLER = [
    "Please",
    "take",
    "your",
    "time",
    "and",
    "answer",
    "calmly,",
    "since",
    "nobody",
    "here",
    "is",
    "in",
    "a",
    "hurry",
    "today.",
    "",
]
_DOMAIN = "biology"
_LENGTHS = (64, 512, 1500)
Messages = list[dict[str, str]]
Seen = dict[tuple[int, int, str, str], list[tuple[float, float]]]


@dataclass(frozen=True)
class Sample:
    """One answer: seconds to its first token, output tokens, seconds in all."""

    first: float
    tokens: int
    total: float


class Client:
    """Sends prompts to the servers."""

    def __init__(self, urls: dict[str, str], model: str, tokens: int) -> None:
        self.http = httpx.AsyncClient(timeout=600)
        self.urls, self.model, self.tokens = urls, model, tokens

    async def answer(self, server: str, messages: Messages, extra: dict[str, Any] | None = None) -> Sample:
        """A streamed answer of exactly ``tokens`` tokens."""
        body = {"model": self.model, "messages": messages, "stream": True, "temperature": 0, "ignore_eos": True,
                "max_tokens": self.tokens, **(extra or {})}  # fmt: skip
        began, first, tokens = perf_counter(), None, 0
        async with self.http.stream("POST", f"{self.urls[server]}/v1/chat/completions", json=body) as response:
            response.raise_for_status()
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    chunk = json.loads(line[6:])
                    if (
                        (report := chunk.get("sensecheck"))
                        and bool(extra)
                        and report["flagged"] != ("domain" in extra["sensecheck"])
                    ):
                        raise RuntimeError(f"not the reading that the arm is about: {report}")
                    if chunk["choices"] and chunk["choices"][0]["delta"].get("content"):
                        first = first or perf_counter()
                        tokens += 1
        return Sample((first or perf_counter()) - began, tokens, perf_counter() - began)

    async def two_calls(self, server: str, messages: Messages, domain: str | None) -> Sample:
        """Inspect, then answer what comes back."""
        began = perf_counter()
        body = {"messages": messages, "domain": domain, "tokens": False}
        response = await self.http.post(f"{self.urls[server]}/v1/sae/inspect", json=body)
        reading = response.raise_for_status().json()
        if bool(reading["misreads"]) != bool(domain):
            raise RuntimeError(f"not the reading that the arm is about: {reading['mentions']}")
        spent = perf_counter() - began
        sample = await self.answer(server, reading["annotated_messages"])
        return Sample(sample.first + spent, sample.tokens, sample.total + spent)

    def arms(self) -> dict[str, Callable[[Messages], Awaitable[Sample]]]:
        """The arms by name, the baseline first."""
        annotate = {"annotate": True}
        return {
            "plain": lambda m: self.answer("plain", m),
            "not asked": lambda m: self.answer("ours", m),
            "one call, clean": lambda m: self.answer("ours", m, {"sensecheck": annotate}),
            "one call, flagged": lambda m: self.answer("ours", m, {"sensecheck": {**annotate, "domain": _DOMAIN}}),
            "two calls, clean": lambda m: self.two_calls("ours", m, None),
            "two calls, flagged": lambda m: self.two_calls("ours", m, _DOMAIN),
            "hooks": lambda m: self.answer("hooks", m),
            "sidecar": lambda m: self.two_calls("sidecar", m, None),
        }


def start_servers(model: str, stack: ExitStack, *, compiled: bool, extra: tuple[str, ...]) -> dict[str, str]:
    """Four servers on free ports; they end with the stack."""
    layer = Artefacts.open(model).view.layer
    common: dict[str, Any] = {"port": 0, "max_model_len": 2048, "compiled": compiled}
    hooked = ("--worker-cls", "benchmarks.hooked_worker.HookedWorker")
    options = {
        "plain": ServerOptions(**common, engine="none", extra=extra),
        "ours": ServerOptions(**common, extra=extra),
        "sidecar": ServerOptions(**common, engine="transformers", extra=extra),
        "hooks": ServerOptions(
            **{**common, "compiled": False}, engine="none", extra=(*extra, *hooked),
            environment={"SENSECHECK_HOOK_LAYER": str(layer)},
        ),
    }  # fmt: skip
    urls = {}
    with progress("servers", len(options)) as advance:
        for name, option in options.items():
            urls[name] = stack.enter_context(ModelServer.start(model, option)).url
            advance(1, name)
    return urls


def prompts(encoder: ChatEncoder, length: int, count: int, rng: random.Random) -> list[Messages]:
    """``count`` prompts of about ``length`` tokens that differ from their first words on."""
    result = []
    for _ in range(count):
        words = f"Case {rng.randrange(10**9)}: " + " ".join(rng.choices(_FILLER, k=length))
        room = length - len(encoder.encode([{"role": "user", "content": _QUESTION}]).token_ids)
        text = encoder.tokenizer.decode(encoder.encode_text(words)[: max(room, 8)])
        result.append([{"role": "user", "content": text + "." + _QUESTION}])
    return result


async def measure(client: Client, encoder: ChatEncoder, rounds: dict[int, int], seed: int, log: Path | None) -> Seen:
    """Seconds to the first token and tokens per second, by length, concurrency, cache state and arm."""
    rng = random.Random(seed)
    seen: Seen = defaultdict(list)
    arms = client.arms()
    for run in arms.values():  # warm up
        for messages in prompts(encoder, 200, 2, rng):
            await run(messages)
    steps = sum(rounds.values()) * len(_LENGTHS) * len(arms)
    with progress("overhead", steps) as advance:
        for concurrency, repeat in rounds.items():
            for turn in range(repeat):
                for length in _LENGTHS:
                    order = list(arms)
                    rng.shuffle(order)
                    for name in order:
                        batch = prompts(encoder, length, concurrency, rng)
                        for state in ("cold", "warm"):
                            began = perf_counter()
                            samples = await asyncio.gather(*(arms[name](messages) for messages in batch))
                            speed = sum(sample.tokens for sample in samples) / (perf_counter() - began)
                            result = mean(s.first for s in samples), speed
                            seen[length, concurrency, state, name].append(result)
                            if log:
                                with log.open("a") as lines:
                                    lines.write(json.dumps([length, concurrency, state, name, *result]) + "\n")
                        advance(1, f"{concurrency} users, round {turn + 1}, {length} tokens, {name}")
    return seen


def table_of(seen: Seen, arms: list[str]) -> list[dict[str, Any]]:
    """Medians and ratios to the baseline, one row per cell."""
    rows = []
    for (length, concurrency, state, name), values in seen.items():
        base = seen[length, concurrency, state, "plain"]
        first, speed = median(v[0] for v in values), median(v[1] for v in values)
        rows.append({
            "tokens": length, "users": concurrency, "cache": state, "arm": name, "rounds": len(values),
            "first_token_ms": round(first * 1e3, 1), "first_token_ratio": round(first / median(v[0] for v in base), 3),
            "tokens_per_second": round(speed, 1), "speed_ratio": round(speed / median(v[1] for v in base), 3),
        })  # fmt: skip
    order = {name: place for place, name in enumerate(arms)}
    return sorted(rows, key=lambda row: (row["tokens"], row["users"], row["cache"], order[row["arm"]]))


def main(
    model: Annotated[str, typer.Option(help="Built-in model.")] = SMALL_MODEL,
    rounds: Annotated[int, typer.Option(help="Rounds with one user.")] = 5,
    rounds_of_eight: Annotated[int, typer.Option(help="Rounds with eight users at once.")] = 2,
    tokens: Annotated[int, typer.Option(help="Output tokens per answer.")] = 32,
    compiled: Annotated[bool, typer.Option(help="Compile the models (all but the hooks arm, which cannot).")] = True,
    block_size: Annotated[
        int | None, typer.Option(help="Tokens per cache block; vLLM's default on CPU is 128.")
    ] = None,
    log: Annotated[Path | None, typer.Option(help="Append every measurement to this file, in case of a crash.")] = None,
    seed: int = 0,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Start the servers, measure, print."""
    extra = ("--block-size", str(block_size)) if block_size else ()
    encoder = ChatEncoder(Artefacts.open(model).model.path)
    with ExitStack() as stack:
        client = Client(start_servers(model, stack, compiled=compiled, extra=extra), model, tokens)
        seen = asyncio.run(measure(client, encoder, {1: rounds, 8: rounds_of_eight}, seed, log))
    rows = table_of(seen, list(client.arms()))
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    Console(width=140).print(table)


if __name__ == "__main__":
    typer.run(main)
