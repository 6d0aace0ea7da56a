"""The two engines: hypothesis draws cases at random and shrinks what fails; atheris looks for cases that reach new code.

Both run a target's ``check`` and count only cases that were really checked. What fails is kept as a reproducer, a text file
with the case as a Python literal; see :mod:`.reproducers`.
"""

from __future__ import annotations

import faulthandler
import os
import random
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.database import DirectoryBasedExampleDatabase

from .registry import Target
from .reproducers import Reproducers

HANG_SECONDS = 120  # a case that takes longer ends the process; the case is kept
_ARM_SECONDS = 5
_CHUNK = 1_000  # examples of one run of hypothesis, whose memory of what it has tried grows
_INPUT = 2_048  # bytes of an input of atheris, from which hypothesis' strategies draw
_SEEDS = 60


@dataclass
class Result:
    """What one engine did with one target: ``crashes`` are files, ``ended`` says why it stopped early."""

    target: str
    engine: str
    cases: int = 0
    seconds: float = 0.0
    crashes: list[str] = field(default_factory=list)
    ended: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


class Watched:
    """A target's check, counted, with the case at hand written down before and a limit on its time."""

    def __init__(self, target: Target, reproducers: Reproducers, result: Result, seconds: float) -> None:
        self._target, self._reproducers, self.result = target, reproducers, result
        self._begun = time.monotonic()
        self._end = self._begun + seconds
        self._armed = -_ARM_SECONDS

    @property
    def over(self) -> bool:
        """Whether the time is up."""
        return time.monotonic() > self._end

    def __call__(self, case: Any) -> None:
        """Check ``case``; raises what the check raises."""
        self._reproducers.running(case)
        if (now := time.monotonic()) > self._armed + _ARM_SECONDS:  # not each time: it takes a thread
            faulthandler.dump_traceback_later(HANG_SECONDS, exit=True)
            self._armed = now
        try:
            self._target.check(case)
        finally:
            self.result.cases += 1

    def finished(self) -> Result:
        """The result with its time."""
        self._reproducers.running(None)
        faulthandler.cancel_dump_traceback_later()
        self.result.seconds = round(time.monotonic() - self._begun, 1)
        return self.result


def run_random(target: Target, cases: int, seconds: float, folder: Path) -> Result:
    """``cases`` examples of hypothesis, each night others; what failed before comes first. Stops at the first failure."""
    reproducers = Reproducers(folder, target.name)
    watched = Watched(target, reproducers, Result(target.name, "random"), seconds)
    database = DirectoryBasedExampleDatabase(folder / "examples")
    failing: list[Any] = []

    def law(case: Any) -> None:
        if watched.over:
            return
        try:
            watched(case)
        except Exception:
            failing[:] = [case]  # the last one is the smallest
            raise

    while watched.result.cases < cases and not watched.over:
        chunk = settings(
            max_examples=min(_CHUNK, cases - watched.result.cases),
            deadline=None,
            database=database,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.reuse, Phase.generate, Phase.shrink],
            report_multiple_bugs=False,
        )
        try:
            chunk(seed(random.SystemRandom().getrandbits(64))(given(target.cases)(law)))()
        except Exception as error:
            watched.result.crashes.append(reproducers.keep(failing[0], error))
            watched.result.ended = "a crash"
            break
    return watched.finished()


def run_guided(target: Target, cases: int, seconds: float, folder: Path, done: Callable[[Result], None]) -> None:
    """``cases`` inputs that atheris makes from its corpus, which grows from night to night. Goes on after a crash.

    Never returns: libFuzzer owns the process. ``done`` gets the result before it ends. The target's modules must have been
    imported under ``atheris.instrument_imports``.
    """
    import atheris

    reproducers = Reproducers(folder, target.name)
    watched = Watched(target, reproducers, Result(target.name, "guided"), seconds)

    @settings(database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(target.cases)
    def law(case: Any) -> None:
        try:
            watched(case)
        except Exception as error:
            kept = reproducers.keep(case, error)
            if kept not in watched.result.crashes:
                watched.result.crashes.append(kept)

    one = law.hypothesis.fuzz_one_input

    def one_input(data: bytes) -> None:
        one(data)
        if watched.result.cases >= cases or watched.over:
            done(watched.finished())
            sys.stdout.flush()
            os._exit(0)

    corpus = folder / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    if not any(corpus.iterdir()):
        _sow(corpus)
    options = [f"-max_len={_INPUT}", "-len_control=0", f"-timeout={HANG_SECONDS}", "-rss_limit_mb=6000", "-verbosity=0"]
    atheris.Setup([target.name, *options, f"-artifact_prefix={folder}/", str(corpus)], one_input)
    atheris.Fuzz()


def _sow(corpus: Path) -> None:
    """First inputs; shorter ones would end before a case is drawn."""
    draw = random.Random(0)
    for number in range(_SEEDS):
        (corpus / f"seed-{number}").write_bytes(draw.randbytes(64 << number % 6))
