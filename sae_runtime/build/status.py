"""What a build would do, and what builds have left in the cache."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from sae_runtime.build.config import STAGES
from sae_runtime.build.harvest import disk_estimate
from sae_runtime.build.plan import STEPS, BuildPlan
from sae_runtime.build.stages import Stage
from sae_runtime.engines.transformers import TransformersEngine
from sae_runtime.paths import builds_dir

State = Literal["done", "interrupted", "to do"]


@dataclass(frozen=True)
class StepStatus:
    """A step of a build: its stage, key, state, and bytes that it holds or is expected to need (None: unknown)."""

    name: str
    stage: str
    key: str
    state: State
    bytes: int | None


@dataclass(frozen=True)
class KeptStep:
    """A folder in the cache: model, step, key, whether it was finished, bytes, time of its last change."""

    model: str
    name: str
    key: str
    state: State
    bytes: int
    changed: datetime


def planned(plan: BuildPlan) -> list[StepStatus]:
    """All kept steps of ``plan``, with what they hold or will need."""
    return [
        StepStatus(name, stage, plan.steps[name].key, _state(plan.steps[name]), _bytes(plan, name))
        for name, stage in STEPS.items()
    ]


def free_bytes() -> int:
    """Room on the disk that the builds are on."""
    folder = builds_dir()
    folder.mkdir(parents=True, exist_ok=True)
    return shutil.disk_usage(folder).free


def needed_bytes(plan: BuildPlan, until: str = STAGES[-1]) -> int:
    """What the unfinished steps up to stage ``until`` are expected to write."""
    ahead = STAGES[: STAGES.index(until) + 1]
    return sum(step.bytes or 0 for step in planned(plan) if step.state != "done" and step.stage in ahead)


def kept() -> list[KeptStep]:
    """Everything that builds have left, by model and in the order of steps."""
    order = list(STEPS)
    found = []
    for folder in sorted(builds_dir().glob("*/*")):
        name, _, key = folder.name.rpartition("-")
        if folder.is_dir() and name in order:
            changed = datetime.fromtimestamp(folder.stat().st_mtime, UTC)
            state: State = "done" if (folder / "done.json").exists() else "interrupted"
            found.append(KeptStep(folder.parent.name, name, key, state, _size(folder), changed))
    return sorted(found, key=lambda step: (step.model, order.index(step.name), step.changed))


def _state(step: Stage) -> State:
    return "done" if step.done else "interrupted" if step.begun else "to do"


def _bytes(plan: BuildPlan, name: str) -> int | None:
    """What a step holds, or needs: harvests and dictionaries are the large ones."""
    step = plan.steps[name]
    if step.done:
        return _size(step.folder)
    d_model = TransformersEngine.width(plan.model.path)
    if name.endswith("harvest"):
        corpus, limit = plan.config.corpus, plan.config.validation.control_tokens
        train = (
            min(corpus.train_tokens, limit or corpus.train_tokens)
            if name.startswith("control")
            else corpus.train_tokens
        )
        return disk_estimate(train + corpus.validation_tokens + corpus.test_tokens, d_model)
    if name.endswith("train") or name == "again":
        parameters = 2 * plan.config.train.width * d_model
        return parameters * (2 + 12)  # the dictionary, and a checkpoint with the optimiser's state until it is finished
    return None


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
