"""One replica's engine as vLLM schedules it: continuous batching, chunked prefill in order of arrival, a prefix cache.

Time passes in steps. A step computes one token of every sequence that decodes, and as many prompt tokens as fit the step's
budget. Its duration follows from :class:`~benchmarks.fleet.costs.EngineCost`.
"""

from __future__ import annotations

import heapq
import math
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.fleet.clock import Clock
from benchmarks.fleet.costs import EngineCost, pairs

BLOCK = 32  # tokens per cache block, the default of `serve` on a CPU
_TOGETHER = 64  # decoding steps that are taken in one event at most


class Sequence:
    """A prompt to compute and tokens to generate.

    Args:
        chat: whose prompt it is; the prefix cache knows chats by this number.
        prompt: tokens.
        shared: how many of them, from the first, the chat's earlier prompts had too.
        output: tokens to generate, at least 1.
        encode: seconds that the step takes longer which completes the prompt, to read it.
        first: called with the first token.
        done: called with the last one.
    """

    __slots__ = ("chat", "computed", "done", "encode", "ended", "first", "output", "prompt", "shared", "start")

    def __init__(
        self,
        chat: int,
        prompt: int,
        shared: int,
        output: int,
        *,
        encode: float = 0.0,
        first: Callable[[], None] | None = None,
        done: Callable[[], None] | None = None,
    ) -> None:
        self.chat, self.prompt, self.shared, self.output, self.encode = chat, prompt, shared, output, encode
        self.first, self.done = first, done
        self.computed = self.start = 0
        self.ended = False


@dataclass
class _Run:
    """Steps under way that are all alike: when they began, how long each takes, how many, and what they complete."""

    began: float
    each: float
    count: int
    completed: list[Sequence]


class Engine:
    """Computes sequences.

    Args:
        clock: the simulation's.
        cost: of a step.
        budget: tokens per step (vLLM's ``max_num_batched_tokens``).
        slots: sequences at once (``max_num_seqs``).
        capacity: tokens that the prefix cache holds.
    """

    def __init__(self, clock: Clock, cost: EngineCost, *, budget: int, slots: int, capacity: int) -> None:
        self._clock, self._cost = clock, cost
        self._budget, self._slots = budget, slots
        self._cache = PrefixCache(capacity)
        self._waiting: deque[Sequence] = deque()
        self._prefilling: deque[Sequence] = deque()
        self._ends: list[tuple[int, int, Sequence]] = []  # step after which a decoding sequence is done
        self._decoding = 0
        self._context = 0  # tokens behind all that decode
        self._steps = 0
        self._count = 0
        self._run: _Run | None = None
        self._calling = False  # while callbacks run, sequences that they submit wait for the next step together
        self._aborted = False

    def submit(self, sequence: Sequence) -> None:
        """Take in a sequence."""
        self._waiting.append(sequence)
        if self._calling:
            return
        if self._run is None:
            self._begin()
        else:
            self._cut_short(self._run)

    def abort(self, sequence: Sequence) -> None:
        """Stop a sequence; its place is free after the step under way."""
        sequence.ended = self._aborted = True

    def reset(self) -> list[Sequence]:
        """Lose everything, as when the process dies; returns what was under way."""
        lost = [*self._waiting, *self._prefilling, *(end[2] for end in self._ends)]
        self._waiting.clear()
        self._prefilling.clear()
        self._ends.clear()
        self._decoding = self._context = 0
        self._run = None
        self._cache.clear()
        return [sequence for sequence in lost if not sequence.ended]

    def _begin(self) -> None:
        """Start the next steps, if there is something to compute."""
        self._drop_ended()
        decoding = self._decoding
        tokens, attended, encode, sequences, completed = self._budget - decoding, 0.0, 0.0, decoding, []
        while tokens > 0 and (sequence := self._next_prompt(len(completed))) is not None:
            some = min(tokens, sequence.prompt - sequence.computed)
            attended += pairs(sequence.computed, sequence.computed + some)
            sequence.computed += some
            tokens -= some
            sequences += 1
            if sequence.computed == sequence.prompt:
                self._prefilling.popleft()
                completed.append(sequence)
                encode += sequence.encode
        if not decoding and tokens == self._budget:
            return
        count = 1
        if tokens == self._budget - decoding and not self._waiting:  # decoding alone
            count = max(1, min(_TOGETHER, self._ends[0][0] - self._steps))
        context = self._context + decoding * (count - 1) / 2
        each = self._cost.step(self._budget - tokens, sequences, attended, context) + encode
        self._run = run = _Run(self._clock.now, each, count, completed)
        self._clock.after(each * count, self._end, run)

    def _cut_short(self, run: _Run) -> None:
        """End the steps under way at the next one's end: something new has come."""
        whole = max(1, math.ceil((self._clock.now - run.began) / run.each - 1e-9))
        if whole < run.count:
            shorter = _Run(run.began, run.each, whole, run.completed)
            self._run = shorter
            self._clock.at(run.began + whole * run.each, self._end, shorter)

    def _end(self, run: _Run) -> None:
        if run is not self._run:  # cut short, or lost
            return
        self._run = None
        self._steps += run.count
        self._context += self._decoding * run.count
        finished = []
        while self._ends and self._ends[0][0] <= self._steps:
            finished.append(self._leave(heapq.heappop(self._ends)[2]))
        for sequence in run.completed:
            self._cache.put(sequence.chat, sequence.prompt)
            if sequence.output > 1 and not sequence.ended:
                self._count += 1
                heapq.heappush(self._ends, (self._steps + sequence.output - 1, self._count, sequence))
                self._decoding += 1
                self._context += sequence.prompt
                sequence.start = self._steps
            elif not sequence.ended:
                finished.append(sequence)
        self._calling = True
        for sequence in run.completed:
            if sequence.first and not sequence.ended:
                sequence.first()
        for sequence in finished:
            if not sequence.ended:
                sequence.ended = True
                self._cache.put(sequence.chat, sequence.prompt + sequence.output)
                if sequence.done:
                    sequence.done()
        self._calling = False
        self._begin()

    def _next_prompt(self, completed: int) -> Sequence | None:
        """The prompt whose tokens are computed next; a new one needs a place, and is looked up in the prefix cache."""
        while self._prefilling and self._prefilling[0].ended:
            stopped = self._prefilling.popleft()
            self._cache.put(stopped.chat, max(stopped.computed, self._cache.kept(stopped.chat)))
        if self._prefilling:
            return self._prefilling[0]
        while self._waiting:
            if self._decoding + completed >= self._slots:
                return None
            sequence = self._waiting.popleft()
            if not sequence.ended:
                sequence.computed = self._cache.hit(sequence)
                self._prefilling.append(sequence)
                return sequence
        return None

    def _drop_ended(self) -> None:
        """Free the places of aborted sequences."""
        if self._aborted:
            self._aborted = False
            for end in self._ends:
                if end[2].ended:
                    self._leave(end[2])
            self._ends = [end for end in self._ends if not end[2].ended]
            heapq.heapify(self._ends)

    def _leave(self, sequence: Sequence) -> Sequence:
        self._decoding -= 1
        self._context -= sequence.prompt + self._steps - sequence.start
        return sequence


class PrefixCache:
    """How many tokens of each chat's last prompt and answer are kept; the chats served longest ago go."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._kept: OrderedDict[int, int] = OrderedDict()
        self._size = 0

    def hit(self, sequence: Sequence) -> int:
        """Tokens of the prompt that need not be computed: whole blocks, and never all of them."""
        known = min(sequence.shared, self.kept(sequence.chat), sequence.prompt - 1)
        if sequence.chat in self._kept:
            self._kept.move_to_end(sequence.chat)
        return max(0, known) // BLOCK * BLOCK

    def kept(self, chat: int) -> int:
        """Tokens of a chat that are kept."""
        return self._kept.get(chat, 0)

    def put(self, chat: int, tokens: int) -> None:
        """Keep a chat's tokens."""
        self._size += tokens - self._kept.pop(chat, 0)
        self._kept[chat] = tokens
        while self._size > self._capacity and len(self._kept) > 1:
            self._size -= self._kept.popitem(last=False)[1]

    def clear(self) -> None:
        """Keep nothing."""
        self._kept.clear()
        self._size = 0
