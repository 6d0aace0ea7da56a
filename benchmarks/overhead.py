"""What reading costs beside plain vLLM, side by side in one run: ``python -m benchmarks.overhead``.

Four servers of the same model, equal but for the reading, answer the same prompts in turn, over several interleaved rounds:

- ``plain``: vLLM without Sensecheck (the baseline);
- ``not asked``: ours, a request that does not opt in;
- ``one call, clean`` / ``one call, flagged``: ours, annotated in one call; nothing / something is flagged;
- ``two calls, clean`` / ``two calls, flagged``: ours, ``/v1/sae/inspect`` first, then the answer;
- ``hooks``: vLLM in eager mode with a forward hook that copies the residual to the host;
- ``sidecar``: a transformers engine beside vLLM reads, then the answer.

While one server answers, the others are stopped (SIGSTOP): an idle vLLM worker spins for a while after a request, which cost
the next arm up to a second here. Each turn begins with a short request that is not measured.

Every prompt ends in a mention, so every inspected prompt is really read. ``cold``: no prompt shares a prefix with an
earlier one; ``warm``: the same prompts again. Reported are medians over rounds of the time to the first token (from the
first request on, the mean over concurrent users) and of output tokens per second, with ratios to plain.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from time import perf_counter
from typing import Annotated, Any

import httpx
import typer

from benchmarks.table import show
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
]
_DOMAIN = "biology"
_LENGTHS = (64, 512, 1500)
_ARMS = ("plain", "not asked", "one call, clean", "one call, flagged", "two calls, clean", "two calls, flagged",
         "hooks", "sidecar")  # fmt: skip
Messages = list[dict[str, str]]
Arm = tuple[str, Callable[[Messages], "Awaitable[Sample]"]]  # the server, and what is asked of it
Seen = dict[tuple[int, int, str, str], list[tuple[float, float]]]


@dataclass(frozen=True)
class Plan:
    """What is measured: rounds by number of users, prompt lengths, the order's seed, and where it is written down."""

    rounds: dict[int, int]
    lengths: list[int]
    seed: int
    log: Path | None


@dataclass(frozen=True)
class Sample:
    """One answer: seconds to its first token, output tokens, seconds in all."""

    first: float
    tokens: int
    total: float


class Client:
    """Sends prompts to the servers."""

    def __init__(self, servers: Servers, model: str, tokens: int) -> None:
        self.http = httpx.AsyncClient(timeout=600)
        self.servers, self.model, self.tokens = servers, model, tokens

    async def answer(self, server: str, messages: Messages, extra: dict[str, Any] | None = None) -> Sample:
        """A streamed answer of exactly ``tokens`` tokens."""
        body = {"model": self.model, "messages": messages, "stream": True, "temperature": 0, "ignore_eos": True,
                "max_tokens": self.tokens, **(extra or {})}  # fmt: skip
        began, first = perf_counter(), None
        async with self.http.stream("POST", f"{self.servers.url(server)}/v1/chat/completions", json=body) as response:
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
        # ignore_eos fixes the number of tokens; chunks cannot be counted, since half a character is sent with the next.
        return Sample((first or perf_counter()) - began, self.tokens, perf_counter() - began)

    async def two_calls(self, server: str, messages: Messages, domain: str | None) -> Sample:
        """Inspect, then answer what comes back."""
        began = perf_counter()
        body = {"messages": messages, "domain": domain, "tokens": False}
        response = await self.http.post(f"{self.servers.url(server)}/v1/sae/inspect", json=body)
        reading = response.raise_for_status().json()
        if bool(reading["misreads"]) != bool(domain):
            raise RuntimeError(f"not the reading that the arm is about: {reading['mentions']}")
        spent = perf_counter() - began
        sample = await self.answer(server, reading["annotated_messages"])
        return Sample(sample.first + spent, sample.tokens, sample.total + spent)

    def arms(self) -> dict[str, Arm]:
        """The arms by name, the baseline first: the server, and what is asked of it."""
        annotate = {"annotate": True}
        return {
            "plain": ("plain", lambda m: self.answer("plain", m)),
            "not asked": ("ours", lambda m: self.answer("ours", m)),
            "one call, clean": ("ours", lambda m: self.answer("ours", m, {"sensecheck": annotate})),
            "one call, flagged": (
                "ours",
                lambda m: self.answer("ours", m, {"sensecheck": {**annotate, "domain": _DOMAIN}}),
            ),
            "two calls, clean": ("ours", lambda m: self.two_calls("ours", m, None)),
            "two calls, flagged": ("ours", lambda m: self.two_calls("ours", m, _DOMAIN)),
            "hooks": ("hooks", lambda m: self.answer("hooks", m)),
            "sidecar": ("sidecar", lambda m: self.two_calls("sidecar", m, None)),
        }


class Servers:
    """The running servers, of which one at a time is awake."""

    def __init__(self) -> None:
        self._servers: dict[str, ModelServer] = {}

    def add(self, name: str, server: ModelServer) -> None:
        """Take ``server`` in, asleep."""
        self._servers[name] = server
        self._signal(server, signal.SIGSTOP)

    def url(self, name: str) -> str:
        """Root address of the server ``name``."""
        return self._servers[name].url

    def pid(self, name: str) -> int:
        """Number of the first process of the server ``name``, which its others descend from."""
        return self._servers[name].process.pid

    @contextmanager
    def awake(self, name: str) -> Iterator[None]:
        """Let the server ``name`` run for the block."""
        self._signal(self._servers[name], signal.SIGCONT)
        try:
            yield
        finally:
            self._signal(self._servers[name], signal.SIGSTOP)

    def wake_all(self) -> None:
        """Let all run, so that they can end."""
        for server in self._servers.values():
            self._signal(server, signal.SIGCONT)

    @staticmethod
    def _signal(server: ModelServer, number: int) -> None:
        os.killpg(server.process.pid, number)  # the server's own session: API server, engine core, worker


def start_servers(
    model: str, servers: Servers, names: set[str], stack: ExitStack, *, compiled: bool, extra: tuple[str, ...]
) -> None:
    """Start the servers ``names`` on free ports; they end with the stack."""
    layer = Artefacts.open(model).view.layer
    # vLLM would keep one core free for a plain server, and none when there is a connector: all get the same cores.
    environment = {"VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, sorted(os.sched_getaffinity(0))))}
    common: dict[str, Any] = {
        "port": 0, "max_model_len": 2048, "compiled": compiled, "extra": extra, "environment": environment,
    }  # fmt: skip
    hooked = ("--worker-cls", "benchmarks.hooked_worker.HookedWorker")
    options = {
        "plain": ServerOptions(**common, engine="none"),
        "ours": ServerOptions(**common),
        "sidecar": ServerOptions(**common, engine="transformers"),
        "hooks": ServerOptions(
            **common
            | {"compiled": False, "extra": (*extra, *hooked)}
            | {"environment": {**environment, "SENSECHECK_HOOK_LAYER": str(layer)}},
            engine="none",
        ),
    }  # fmt: skip
    with progress("servers", len(names)) as advance:
        for name in names:
            servers.add(name, stack.enter_context(ModelServer.start(model, options[name])))
            advance(1, name)
    stack.callback(servers.wake_all)


def prompts(encoder: ChatEncoder, length: int, count: int, rng: random.Random) -> list[Messages]:
    """``count`` prompts of exactly ``length`` tokens that differ from their first words on.

    Exactly, since the prefix cache works in whole blocks: one token more or less can be a block more to compute.
    """
    result = []
    for _ in range(count):
        words = [f"Case {rng.randrange(10**9)}:", *rng.choices(_FILLER, k=length)]
        while gap := length - len(encoder.encode(messages := _ask(words)).token_ids):
            words = words + ["so"] * gap if gap > 0 else words[:gap]
        result.append(messages)
    return result


def _ask(words: list[str]) -> Messages:
    return [{"role": "user", "content": " ".join(words) + "." + _QUESTION}]


async def measure(client: Client, arms: dict[str, Arm], encoder: ChatEncoder, plan: Plan) -> Seen:
    """Seconds to the first token and tokens per second, by length, concurrency, cache state and arm."""
    rng = random.Random(plan.seed)
    seen: Seen = defaultdict(list)
    for server, run in arms.values():  # warm up
        with client.servers.awake(server):
            for messages in prompts(encoder, 200, 2, rng):
                await run(messages)
    turns = [(users, length) for users, rounds in plan.rounds.items() for _ in range(rounds) for length in plan.lengths]
    with progress("overhead", len(turns) * len(arms)) as advance:
        for users, length in turns:
            for name in rng.sample(list(arms), len(arms)):
                server, run = arms[name]
                batch = prompts(encoder, length, users, rng)
                with client.servers.awake(server):
                    await client.answer(server, prompts(encoder, 64, 1, rng)[0], {"max_tokens": 1})
                    for state in ("cold", "warm"):
                        result = await timed(run, batch)
                        seen[length, users, state, name].append(result)
                        if plan.log:
                            with plan.log.open("a") as lines:
                                lines.write(json.dumps([length, users, state, name, *result]) + "\n")
                advance(1, f"{users} users, {length} tokens, {name}")
    return seen


def read_log(path: Path) -> Seen:
    """What :func:`measure` wrote."""
    seen: Seen = defaultdict(list)
    for line in path.read_text().splitlines():
        length, users, state, name, first, speed = json.loads(line)
        seen[length, users, state, name].append((first, speed))
    return seen


async def timed(run: Callable[[Messages], Awaitable[Sample]], batch: list[Messages]) -> tuple[float, float]:
    """Mean seconds to the first token and tokens per second in all, when the whole batch is asked at once."""
    began = perf_counter()
    samples = await asyncio.gather(*(run(messages) for messages in batch))
    speed = sum(sample.tokens for sample in samples) / (perf_counter() - began)
    return mean(sample.first for sample in samples), speed


def table_of(seen: Seen) -> list[dict[str, Any]]:
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
    order = {name: place for place, name in enumerate(_ARMS)}
    return sorted(rows, key=lambda row: (row["tokens"], row["users"], row["cache"], order[row["arm"]]))


def main(
    model: Annotated[str, typer.Option(help="Built-in model.")] = SMALL_MODEL,
    rounds: Annotated[int, typer.Option(help="Rounds with one user.")] = 5,
    rounds_of_eight: Annotated[int, typer.Option(help="Rounds with eight users at once.")] = 2,
    length: Annotated[list[int] | None, typer.Option(help="Prompt tokens; may be repeated.")] = None,
    arm: Annotated[list[str] | None, typer.Option(help="Measure plain and these arms alone; may be repeated.")] = None,
    tokens: Annotated[int, typer.Option(help="Output tokens per answer.")] = 32,
    compiled: Annotated[bool, typer.Option(help="Compile the models (all but the hooks arm, which cannot).")] = True,
    block_size: Annotated[int | None, typer.Option(help="Tokens per cache block; else as `serve` has it.")] = None,
    log: Annotated[Path | None, typer.Option(help="Append every measurement to this file, in case of a crash.")] = None,
    from_log: Annotated[Path | None, typer.Option(help="Measure nothing: print the table of such a file.")] = None,
    seed: int = 0,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Start the servers, measure, print."""
    if from_log:
        show(table_of(read_log(from_log)), as_json=as_json)
        return
    plan = Plan({1: rounds, 8: rounds_of_eight}, length or list(_LENGTHS), seed, log)
    extra = ("--block-size", str(block_size)) if block_size else ()
    encoder = ChatEncoder(Artefacts.open(model).model.path)
    with ExitStack() as stack:
        servers = Servers()
        client = Client(servers, model, tokens)
        arms = {name: run for name, run in client.arms().items() if not arm or name in ("plain", *arm)}
        needed = {server for server, _ in arms.values()}
        start_servers(model, servers, needed, stack, compiled=compiled, extra=extra)
        seen = asyncio.run(measure(client, arms, encoder, plan))
    show(table_of(seen), as_json=as_json)


if __name__ == "__main__":
    typer.run(main)
