"""The tasks, by name: one small class each."""

from __future__ import annotations

from sae_runtime.errors import InputError
from sae_runtime.evaluation.items import Task
from sae_runtime.evaluation.tasks.entailment import Flute
from sae_runtime.evaluation.tasks.maths import Asdiv, Gsm8k, Mawps, Svamp, SvampSteps
from sae_runtime.evaluation.tasks.metaphor import Lcc, MohX, VuaVerbs
from sae_runtime.evaluation.tasks.senses import CoarseWsd, Wic
from sae_runtime.evaluation.tasks.table import Table

TASKS: dict[str, type[Task]] = {
    task.name: task
    for task in (MohX, VuaVerbs, Lcc, Flute, CoarseWsd, Wic, Svamp, SvampSteps, Mawps, Asdiv, Gsm8k, Table)
}


def task_named(name: str, limits: dict[str, int]) -> Task:
    """The task ``name`` with at most ``limits`` items per split.

    Raises:
        InputError: there is no such task.
    """
    if name not in TASKS:
        raise InputError(f"There is no task '{name}'.", f"Choose one of {', '.join(TASKS)}.")
    return TASKS[name](limits)
