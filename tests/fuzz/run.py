"""Fuzz: ``python -m tests.fuzz.run [TARGET ...]``; ``make fuzz`` runs all. Ends with status 1 when a law is broken.

Corpus, examples that failed and reproducers stay in the user's cache (``fuzz/TARGET``), so that the next run goes on from
there. Each target and engine runs in a process of its own: one that dies or hangs costs the others nothing.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

from sae_runtime.paths import cache_dir

from .engines import Result, run_guided, run_random
from .registry import TARGETS, Target
from .reproducers import Reproducers, read_case

_PACKAGES = ["sae_runtime", "middleware"]  # whose code atheris watches
_GRACE = 180  # seconds that a process may take to import its target and to end


def main() -> int:
    """Run what the command line asks for."""
    options = _options()
    logging.disable(logging.CRITICAL)
    if options.replay:
        Target.load(options.targets[0]).check(read_case(options.replay))
        print("The case passes.")
        return 0
    if options.engine != "both":
        return _run_here(options)
    results = _run_all(options)
    print(_table(results))
    wanted = sum(options.runs or TARGETS[name].random for name in options.targets)
    done = sum(result.cases for result in results if result.engine == "random")
    if done < wanted:
        print(f"{done:,} of {wanted:,} random cases fitted into {options.minutes:g} minutes; give --minutes more.")
    crashes = sorted({crash for result in results for crash in result.crashes})
    for crash in crashes:
        print(f"crash: {crash} (its first line says how to run it again)")
    return 1 if crashes or any(result.ended for result in results) else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.run", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}; default: all")
    parser.add_argument("--runs", type=int, help="cases per engine and target; default: those of the nightly run")
    parser.add_argument("--minutes", type=float, default=25.0, help="for all of it")
    parser.add_argument("--engine", choices=["both", "random", "guided"], default="both")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="check the case in a reproducer, of one TARGET")
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.targets = options.targets or list(TARGETS)
    if unknown := set(options.targets) - set(TARGETS):
        parser.error(f"there is no target {', '.join(sorted(unknown))}")
    if (options.replay or options.engine != "both") and len(options.targets) != 1:
        parser.error("name one target")
    return options


def _folder(name: str) -> Path:
    return cache_dir() / "fuzz" / name


def _run_here(options: argparse.Namespace) -> int:
    """One engine, one target, in this process."""
    (name,) = options.targets
    sizes = TARGETS[name]
    cases = options.runs or (sizes.random if options.engine == "random" else sizes.guided)

    def done(result: Result) -> None:
        text = json.dumps(result.as_dict())
        if options.result:
            options.result.write_text(text, "utf-8")
        else:
            print(text)

    if options.engine == "random":
        done(run_random(Target.load(name), cases, options.minutes * 60, _folder(name)))
        return 0
    import atheris

    with atheris.instrument_imports(include=_PACKAGES):
        target = Target.load(name)
    run_guided(target, cases, options.minutes * 60, _folder(name), done)
    return 0


def _run_all(options: argparse.Namespace) -> list[Result]:
    """Both engines for each target, each in a process of its own; first what is left of earlier crashes.

    Each gets at most twice an equal share of the time that is left: most need far less.
    """
    engines = ["random", "guided"] if find_spec("atheris") else ["random"]
    runs = [(name, engine) for name in options.targets for engine in engines]
    end = time.monotonic() + options.minutes * 60
    results = [_known(name) for name in options.targets]
    for number, (name, engine) in enumerate(runs):
        left = max(5.0, end - time.monotonic())
        share = min(left, 2 * left / (len(runs) - number))
        found = _child(name, engine, share / 60, options.runs)
        results.append(found)
        crashes = f"{len(found.crashes)} crashes {found.ended}"
        print(f"{name} {engine}: {found.cases:,} cases, {found.seconds} s, {crashes}", flush=True)
    return results


def _known(name: str) -> Result:
    """Check the reproducers that earlier runs left; those that pass by now are removed."""
    result = Result(name, "known")
    begun = time.monotonic()
    paths = list(Reproducers(_folder(name), name))
    for path in paths:
        command = [sys.executable, "-m", __spec__.name, name, "--replay", str(path)]
        passed = subprocess.run(command, capture_output=True, timeout=_GRACE).returncode == 0
        result.cases += 1
        if passed:
            path.unlink()
        else:
            result.crashes.append(str(path))
    result.seconds = round(time.monotonic() - begun, 1)
    return result


def _child(name: str, engine: str, minutes: float, runs: int | None) -> Result:
    answer = _folder(name) / f"{engine}.json"
    answer.parent.mkdir(parents=True, exist_ok=True)
    answer.unlink(missing_ok=True)
    command = [sys.executable, "-m", __spec__.name, name, "--engine", engine, "--minutes", str(minutes)]
    command += ["--result", str(answer), *(["--runs", str(runs)] if runs else [])]
    log = _folder(name) / f"{engine}.log"
    begun = time.monotonic()
    with log.open("wb") as output:
        try:
            code = subprocess.run(
                command, stdout=output, stderr=subprocess.STDOUT, timeout=minutes * 60 + _GRACE,
                env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
            ).returncode  # fmt: skip
        except subprocess.TimeoutExpired:
            code = -1
    if answer.exists():
        return Result(**json.loads(answer.read_text("utf-8")))
    ended = f"ended with code {code}, see {log}"
    crash = Reproducers(_folder(name), name).keep_running(ended)
    return Result(name, engine, 0, round(time.monotonic() - begun, 1), [crash] if crash else [], ended)


def _table(results: list[Result]) -> str:
    lines = ["| target | random | guided | seconds | crashes |", "|---|---|---|---|---|"]
    for name in dict.fromkeys(result.target for result in results):
        ours = [result for result in results if result.target == name]
        cases = {engine: sum(r.cases for r in ours if r.engine == engine) for engine in ("random", "guided")}
        crashes = len({crash for result in ours for crash in result.crashes})
        seconds = sum(result.seconds for result in ours)
        lines.append(f"| {name} | {cases['random']:,} | {cases['guided']:,} | {seconds:.0f} | {crashes} |")
    counted = [result for result in results if result.engine != "known"]
    lines.append(f"| all | {sum(r.cases for r in counted if r.engine == 'random'):,} | "
                 f"{sum(r.cases for r in counted if r.engine == 'guided'):,} | {sum(r.seconds for r in results):.0f} | "
                 f"{len({crash for result in results for crash in result.crashes})} |")  # fmt: skip
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
