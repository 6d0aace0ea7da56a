"""One turn of a chat on its way: to a replica, through reading and answering, with the product's deadlines and retries."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field

from benchmarks.fleet.clock import Clock
from benchmarks.fleet.costs import Costs
from benchmarks.fleet.engine import Sequence
from benchmarks.fleet.fleet import Fleet
from benchmarks.fleet.replica import MAX_READINGS, Replica, Visit
from benchmarks.fleet.traffic import Chat, TurnSize

PLAIN, ONE_CALL, TWO_CALLS = MODES = ("plain", "one call", "two calls")
GRACE = 0.3  # seconds: sae_runtime.serving.readers, and the annotator's default
BUSY_SECONDS = 0.4  # within which a refused reading is tried again (middleware.sources.server)
PAUSES = (0.5, 1.0)  # before an answer that was refused or lost is asked for again (the OpenAI client's retries)
_LEARNT = 32  # readings that a client learns its deadline from (middleware.policy)
_ENOUGH = 3
_FAILURES, _SUSPENDED = 5, 30.0  # the circuit breaker
_LONGEST = 4_000  # tokens of a prompt; what is before is dropped


@dataclass
class Outcome:
    """What became of a turn; seconds from its beginning. ``state``: answered, broken (lost in the middle of its answer),
    refused (given up), or open. ``bypassed``: why it was answered unread."""

    began: float
    state: str = "open"
    first: float | None = None
    inspected: float | None = None
    ended: float | None = None
    tokens: int = 0
    bypassed: str | None = None


@dataclass
class Client:
    """A process that talks to the fleet: it has learnt how long readings take, and stops asking when they fail."""

    ceiling: float
    learnt: bool = True
    prefills: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=_LEARNT))
    failures: int = 0
    suspended: float = 0.0

    def deadline(self, tokens: int) -> float:
        """See :meth:`middleware.policy.FailurePolicy.deadline`."""
        if not self.learnt or len(self.prefills) < _ENOUGH:
            return self.ceiling
        longest = max(size for size, _ in self.prefills)
        slowest = max(seconds for _, seconds in self.prefills)
        return min(self.ceiling, GRACE + slowest * max(1.0, tokens / longest))

    def fail(self, now: float) -> None:
        """A reading failed."""
        self.failures += 1
        if self.failures >= _FAILURES:
            self.suspended = now + _SUSPENDED
            self.failures = _FAILURES - 1  # the first one after the pause decides

    def succeed(self, tokens: int, seconds: float) -> None:
        """A reading came after the model had worked on it for ``seconds``."""
        self.failures = 0
        self.prefills.append((tokens, seconds))


@dataclass
class Conversation:
    """A chat under way: tokens so far, and how many of them a replica may have seen."""

    chat: Chat
    history: int = 0
    shared: int = 0
    turn: int = 0


class Crowd:
    """All chats of a run."""

    def __init__(
        self,
        clock: Clock,
        fleet: Fleet,
        costs: Costs,
        mode: str,
        *,
        clients: int,
        ceiling: float,
        until: float,
        learnt: bool = True,
    ) -> None:
        self.clock, self.fleet, self.costs, self.mode, self.until = clock, fleet, costs, mode, until
        self.clients = [Client(ceiling, learnt) for _ in range(clients)]
        self.outcomes: list[Outcome] = []
        self.states: Counter[str] = Counter()

    def join(self, chat: Chat) -> None:
        """A chat will begin."""
        self.clock.at(chat.begins, self.ask, Conversation(chat))

    def ask(self, conversation: Conversation) -> None:
        """The next turn, if it begins within the run."""
        if self.clock.now > self.until:
            return
        client = self.clients[conversation.chat.number % len(self.clients)]
        turn = Turn(self, conversation, conversation.chat.turns[conversation.turn], client)
        self.outcomes.append(turn.outcome)
        self.states["open"] += 1
        turn.begin()

    def over(self, turn: Turn, state: str) -> None:
        """A turn has ended; the chat goes on if it was answered."""
        self.states["open"] -= 1
        self.states[state] += 1
        turn.outcome.state = state
        turn.outcome.ended = self.clock.now - turn.outcome.began
        conversation = turn.conversation
        conversation.turn += 1
        if state == "answered" and conversation.turn < len(conversation.chat.turns):
            self.clock.after(turn.size.pause, self.ask, conversation)


class Turn:
    """See the module. ``prompt``: its tokens without a note; ``shared``: how many of them a replica may have seen."""

    def __init__(self, crowd: Crowd, conversation: Conversation, size: TurnSize, client: Client) -> None:
        self.conversation, self.size, self.client = conversation, size, client
        self.outcome = Outcome(crowd.clock.now)
        self.crowd, self._clock = crowd, crowd.clock
        self.prompt = min(_LONGEST, conversation.history + size.asked)
        self.shared = min(conversation.shared, self.prompt)
        self._tries = 0
        self._note = 0

    def begin(self) -> None:
        """Ask."""
        if self.crowd.mode == TWO_CALLS:
            self._two_calls()
        else:
            self._answer()

    # The answer, in one call with its reading or alone

    def _answer(self) -> None:
        replica = self.crowd.fleet.pick(self.conversation.chat.number)
        if replica is None or not replica.alive:
            self._again("refused")
            return
        visit = replica.enter(self._lost)
        if self.crowd.mode == ONE_CALL:
            self._note = 0  # of an earlier try
            replica.request(visit, replica.plan, visit, self.prompt, lambda: OneCall(self, replica, visit).begin())
        else:
            replica.request(visit, self._compute, visit)

    def _compute(self, visit: Visit) -> None:
        visit.compute(self.sequence(visit, first=self.first))

    def sequence(self, visit: Visit, **options: object) -> Sequence:
        """The answer's sequence, with the note if there is one."""
        prompt = self.prompt + self._note
        options.setdefault("done", lambda: self.done(visit))
        return Sequence(self.conversation.chat.number, prompt, self.shared, self.size.answered, **options)  # type: ignore[arg-type]

    def first(self) -> None:
        """The user sees the first token."""
        self.outcome.first = self._clock.now - self.outcome.began

    def done(self, visit: Visit) -> None:
        """The user has the whole answer."""
        visit.leave()
        conversation = self.conversation
        conversation.history = self.prompt + self.size.answered
        # The note is not part of the history; what stands behind it is not found again.
        conversation.shared = self.prompt if self._note else conversation.history
        self.outcome.tokens = self.size.answered
        self.crowd.over(self, "answered")

    def noted(self) -> None:
        """Answer with the note from here on; the prompt before it has been computed."""
        self._note, self.shared = self.size.note, self.prompt

    def bypass(self, reason: str) -> None:
        """The prompt is answered unread."""
        self.outcome.bypassed = reason

    def _lost(self) -> None:
        """The replica died. An answer that has begun cannot be begun anew behind the user's back."""
        if self.outcome.first is not None:
            self.crowd.over(self, "broken")
        else:
            self._again("refused")

    def _again(self, state: str) -> None:
        if self._tries == len(PAUSES):
            self.crowd.over(self, state)
            return
        self._tries += 1
        self._clock.after(PAUSES[self._tries - 1], self._answer)

    # The reading before it

    def _two_calls(self) -> None:
        client = self.client
        if self._clock.now < client.suspended:
            self.unread("circuit open", failed=False)
            return
        reading = TwoCalls(self, client.deadline(self.prompt))
        self._clock.after(reading.deadline, reading.expire)
        reading.ask()

    def read(self) -> None:
        """The reading is here; answer with it."""
        self.outcome.inspected = self._clock.now - self.outcome.began
        if self.size.note:
            self.noted()
        else:
            self.shared = self.prompt
        self._answer()

    def unread(self, reason: str, *, failed: bool = True) -> None:
        """No reading has come; answer without."""
        if failed:
            self.client.fail(self._clock.now)
        self.bypass(reason)
        self._answer()


class OneCall:
    """An answer that is read while its prompt is computed; its first token waits for the verdict, up to the grace."""

    def __init__(self, turn: Turn, replica: Replica, visit: Visit) -> None:
        self._turn, self._replica, self._visit = turn, replica, visit
        self._clock = turn.crowd.clock
        self._decided = self._finished = False

    def begin(self) -> None:
        """Compute and read."""
        encode = self._turn.crowd.costs.reading.encode(self._turn.prompt)
        self._sequence = self._turn.sequence(self._visit, encode=encode, first=self._computed, done=self._done)
        self._visit.compute(self._sequence)

    def _computed(self) -> None:
        self._clock.after(GRACE, self._visit.guarded(self._expire))
        self._replica.judge(self._visit, self._turn.prompt, self._verdict)

    def _verdict(self) -> None:
        if self._decided:
            return
        self._decided = True
        self._turn.outcome.inspected = self._clock.now - self._turn.outcome.began
        if not self._turn.size.note:
            self._show()
            return
        self._replica.engine.abort(self._sequence)
        self._turn.noted()
        self._replica.request(self._visit, self._anew)

    def _anew(self) -> None:
        self._visit.compute(self._turn.sequence(self._visit, first=self._turn.first))

    def _expire(self) -> None:
        if not self._decided:
            self._decided = True
            self._turn.bypass("timeout")
            self._show()

    def _show(self) -> None:
        self._turn.first()
        if self._finished:
            self._turn.done(self._visit)

    def _done(self) -> None:
        self._finished = True
        if self._decided:
            self._turn.done(self._visit)


class TwoCalls:
    """A reading that is asked for before the answer, by its deadline."""

    def __init__(self, turn: Turn, deadline: float) -> None:
        self.deadline = deadline
        self._turn = turn
        self._clock = turn.crowd.clock
        self._visit: Visit | None = None
        self._replica: Replica | None = None
        self._sequence: Sequence | None = None
        self._tries = 0
        self._began = 0.0
        self._over = False

    def ask(self) -> None:
        """Ask a replica."""
        if self._over:
            return
        replica = self._turn.crowd.fleet.pick(self._turn.conversation.chat.number)
        if replica is None or not replica.alive or replica.readings >= MAX_READINGS:
            self._again("refused")
            return
        self._replica, self._visit = replica, replica.enter(self._lost)
        replica.readings += 1
        replica.request(self._visit, replica.plan, self._visit, self._turn.prompt, self._compute)

    def expire(self) -> None:
        """The deadline has passed."""
        if not self._over:
            self._end()
            if self._sequence is not None:  # what was computed of the prompt is found again
                self._turn.shared = max(self._turn.shared, self._sequence.computed)
            self._turn.unread("timeout")

    def _compute(self) -> None:
        assert self._visit is not None
        self._began = self._clock.now
        turn = self._turn
        encode = turn.crowd.costs.reading.encode(turn.prompt)
        number = turn.conversation.chat.number
        self._sequence = Sequence(number, turn.prompt, turn.shared, 1, encode=encode, done=self._computed)
        self._visit.compute(self._sequence)

    def _computed(self) -> None:
        assert self._visit is not None and self._replica is not None
        self._turn.client.succeed(self._turn.prompt, self._clock.now - self._began)
        self._replica.judge(self._visit, self._turn.prompt, self._replied)

    def _replied(self) -> None:
        self._end()
        self._turn.read()

    def _end(self) -> None:
        self._over = True
        if self._visit is not None and not self._visit.over:
            assert self._replica is not None
            self._replica.readings -= 1
            self._visit.leave()

    def _lost(self) -> None:
        self._again("lost")

    def _again(self, reason: str) -> None:
        """Another try within a short while, then the prompt goes on unread."""
        if self._over:
            return
        self._tries += 1
        if self._tries * BUSY_SECONDS / 4 < BUSY_SECONDS:
            self._clock.after(BUSY_SECONDS / 4, self.ask)
        else:
            self._over = True
            self._turn.unread(reason)
