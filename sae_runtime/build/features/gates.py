"""Validate stage: is a description right on documents that nobody looked at, and would a random model pass as well?

Per feature, on the validation split: precision, recall and balanced accuracy of its description against hard negatives;
*sensitivity*, whether fresh texts made to fit the description fire it; *seed stability*, whether a second training run
found it too. A feature passes when it passes all gates. On the test split, which decides nothing, precision is measured
once more: a description that holds keeps it. The same is done with a dictionary of the model's randomly initialised twin
(the control of Heap et al. 2025); a gate that the twin passes as easily says nothing about the model.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sae_runtime.build.config import ConceptConfig, ValidationConfig
from sae_runtime.build.features.firings import Firings
from sae_runtime.build.features.predicates import Mask, Predicate
from sae_runtime.build.features.scores import Scores
from sae_runtime.build.features.tokens import TokenTable
from sae_runtime.build.stages import Stage, write_text

_FILES = {False: "features.jsonl", True: "control.jsonl"}
KEEPS = 0.05  # a description keeps its precision when the test split's differs by no more


@dataclass
class Validation:
    """What one feature showed.

    Attributes:
        index: latent.
        scores: on the validation split; without a description only ``samples`` tells something.
        test: on the test split.
        correlation: of its activations with those of its counterpart in the second run; 0 when there is none.
        cosine: of its decoder direction with its counterpart's.
        sensitivity: share of fresh texts that fire it; None when it was not tried (other gates had failed already).
        family: of its description, empty when it has none.
        chance: share of random word lists that belong together as well as the description's; None when it names no two.
        context_free: as ``sensitivity``, for the words alone, without those that the description wants before them.
        failed: names of the gates that it did not pass.
    """

    index: int
    scores: Scores = field(default_factory=Scores)
    test: Scores = field(default_factory=Scores)
    family: str = ""
    chance: float | None = None
    correlation: float = 0.0
    cosine: float = 0.0
    sensitivity: float | None = None
    context_free: float | None = None
    failed: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether it may enter the catalog with its description."""
        return not self.failed

    def readable(self, config: ConceptConfig) -> bool:
        """Whether signatures may use it. They claim nothing of its description: what they read is tried on held-out
        sentences. But it has to be a feature that a second training run finds too, and that fires on unseen text."""
        return self.correlation >= config.min_correlation and self.scores.samples >= config.min_samples

    @property
    def keeps(self) -> bool:
        """Whether its precision on the test split is within :data:`KEEPS` of that on the validation split."""
        return self.test.predicted > 0 and abs(self.test.precision - self.scores.precision) <= KEEPS


@dataclass(frozen=True)
class Split:
    """One split of unseen text: its tokens and where each latent fires on them."""

    table: TokenTable
    firings: Firings


def score(predicate: Predicate | None, validation: Split, test: Split, index: int) -> Validation:
    """Score the description of latent ``index`` on both splits."""
    result = Validation(index, Scores(samples=int(validation.firings.counts[index])))
    if predicate is not None:
        result.scores = _score(predicate, validation, index)
        result.test = _score(predicate, test, index)
        result.family = predicate.family
    return result


def _score(predicate: Predicate, split: Split, index: int) -> Scores:
    rows = split.firings.of(index)[0]
    return Scores.of(predicate.holds(split.table), rows, split.table)


Gate = tuple[str, str, Callable[[Validation], bool]]


def gates(config: ValidationConfig) -> list[Gate]:
    """Name, rule in words, and test of every gate."""
    return [
        (
            "evidence",
            f"fires on at least {config.min_samples} unseen tokens, and is predicted on as many",
            lambda v: min(v.scores.samples, v.scores.predicted) >= config.min_samples,
        ),
        (
            "precision",
            f"the 95 % interval of its description's precision is no wider than {config.max_interval} "
            f"and lies above {config.min_precision}",
            lambda v: (
                v.scores.precision_low >= config.min_precision
                and v.scores.precision_high - v.scores.precision_low <= config.max_interval
            ),
        ),
        (
            "balanced accuracy",
            f"of its description against hard negatives at least {config.min_balanced_accuracy}",
            lambda v: v.scores.balanced_accuracy >= config.min_balanced_accuracy,
        ),
        (
            "seed stability",
            f"a second training run has a latent whose activations correlate at least {config.min_correlation}",
            lambda v: v.correlation >= config.min_correlation,
        ),
        (
            "sensitivity",
            f"fires on at least {config.min_sensitivity:.0%} of fresh texts that fit its description",
            lambda v: v.sensitivity is not None and v.sensitivity >= config.min_sensitivity,
        ),
    ]


def judge(results: list[Validation], rules: list[Gate]) -> None:
    """Note in each result which gates it failed."""
    for result in results:
        result.failed = [name for name, _, passes in rules if not passes(result)]


def summary(results: list[Validation], live: Mask, rules: list[Gate]) -> dict[str, Any]:
    """Shares over the latents that are ``live`` ``[d_sae]``, and how the passing ones hold on the test split."""
    passed = [result for result in results if result.passed]
    alive = [result for result in results if live[result.index]]
    return {
        "live": len(alive),
        "passed": len(passed),
        "passed_share": len(passed) / max(1, len(alive)),
        "kept_precision_share": sum(result.keeps for result in passed) / max(1, len(passed)),
        "gates": {
            name: sum(name not in result.failed for result in alive) / max(1, len(alive)) for name, _, _ in rules
        },
        "median_precision": float(np.median([r.scores.precision for r in passed])) if passed else 0.0,
        "median_balanced_accuracy": float(np.median([r.scores.balanced_accuracy for r in passed])) if passed else 0.0,
    }


def save_validations(stage: Stage, results: list[Validation], *, control: bool = False) -> None:
    """Write the results, those of the control to a file of their own, in index order."""
    write_validations(stage.folder / _FILES[control], results)


def load_validations(stage: Stage, *, control: bool = False) -> list[Validation]:
    """Results from a finished stage, by latent index."""
    return read_validations(stage.folder / _FILES[control])


def write_validations(path: Path, results: list[Validation]) -> None:
    """Write some results to a file, one per line."""
    write_text(path, "".join(json.dumps(asdict(result)) + "\n" for result in results))


def read_validations(path: Path) -> list[Validation]:
    """The inverse of :func:`write_validations`."""
    results = []
    for line in path.read_text("utf-8").splitlines():
        entry = json.loads(line)
        entry |= {"scores": Scores(**entry["scores"]), "test": Scores(**entry["test"])}
        results.append(Validation(**entry))
    return results
