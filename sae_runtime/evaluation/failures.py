"""Concepts derived from failures: what goes on inside the model before it gets a word problem wrong.

1. The served model answers calibration problems. Each wrong answer is sorted into a *kind of mistake* by arithmetic alone
   (:func:`mistake`): another operation on the right numbers, the comparison turned round, a number that the question
   is not about, one step where several are needed.
2. A kind with enough cases becomes a concept: the SAE features whose activation on the problem goes with it. They are found on one
   half of the problems (rank test against right answers, Benjamini-Hochberg at 10 %) and must hold on the other half
   (5 %, same direction).
3. A readout of all features says how likely a mistake is (:mod:`sae_runtime.evaluation.readouts`, fitted on one
   half); its area under the curve on the other half says whether failure can be foreseen.
4. Each concept has a note (:data:`NOTES`), which is tried on the other half's problems: on all of them, and on the quarter that a readout
   of this kind of mistake, fitted on the first half, holds likeliest to end so.

Nothing is chosen on test problems. ``sensecheck eval failures TASK`` does all of it and writes ``failures.json``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import permutations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.stats import false_discovery_control, mannwhitneyu
from sklearn.metrics import roc_auc_score

from sae_runtime.detector.notes import joined_notes
from sae_runtime.evaluation.answers import Answers, Question
from sae_runtime.evaluation.arms import Notes, placebo
from sae_runtime.evaluation.capture import Captured
from sae_runtime.evaluation.items import Item
from sae_runtime.evaluation.readouts import Labelled, read_labels
from sae_runtime.evaluation.scoring import interval
from sae_runtime.evaluation.tasks.maths import OPERATIONS, SEVERAL, last_number, problem_numbers, result_of, same_number

FAILURES = "failures.json"
NOTES = {
    "operation": "Decide first which operation the question asks for, then compute.",
    "reversed": "Check which of the two numbers is the larger one, and which way round the question asks.",
    "unused quantity": "Not every number is needed: use only those that the question is about.",
    "unfinished": "This takes more than one step: do not stop after the first.",
    "other": "Work slowly, and check the result against the question.",
}
_MIN_CASES = 15
_MIN_FIRING = 10
_FALSE_DISCOVERIES = 0.1
_CONFIRMED = 0.05
_KEPT = 12


@dataclass(frozen=True)
class FailureFeature:
    """A feature that goes with a kind of mistake: how often it fires with and without it, and its two p-values."""

    index: int
    fires_with: float
    fires_without: float
    p_found: float
    p_confirmed: float


@dataclass(frozen=True)
class FailureConcept:
    """A kind of mistake with its features, strongest first; ``found`` were tested, ``confirmed`` held on the other half."""

    kind: str
    note: str
    cases: int
    found: int
    confirmed: int
    features: list[FailureFeature]


def mistake(item: Item, answer: str) -> str | None:
    """The kind of mistake in ``answer``, or None when it is right."""
    gold, said = float(item.gold), last_number(answer)
    if said is not None and same_number(said, gold):
        return None
    if said is None:
        return "other"
    numbers = problem_numbers(item.prompt[slice(*item.spots["text"])])
    used = {pair for pair in permutations(numbers, 2) if _gives(pair, item.label, gold)}
    if item.label != SEVERAL and any(_gives(pair[::-1], item.label, said) for pair in used):
        return "reversed"
    if item.label == SEVERAL:
        one_step = any(_gives(pair, name, said) for pair in permutations(numbers, 2) for name in OPERATIONS.values())
        return "unfinished" if one_step else "other"
    if any(_gives(pair, name, said) for pair in used for name in OPERATIONS.values()):
        return "operation"
    others = [pair for pair in permutations(numbers, 2) if pair not in used]
    if any(_gives(pair, name, said) for pair in others for name in OPERATIONS.values()) or said == sum(numbers):
        return "unused quantity"
    return "other"


def failure_concepts(
    x: csr_array, kinds: Sequence[str | None], latents: Sequence[int], seed: int = 0
) -> list[FailureConcept]:
    """Concepts of all kinds of mistake with at least fifteen cases.

    Args:
        x: activations ``[problems, columns]`` of the calibration problems.
        kinds: of each problem, see :func:`mistake`.
        latents: index in the full dictionary of each column.
        seed: of the halves.
    """
    half = np.random.default_rng(seed).random(len(kinds)) < 0.5
    names = np.array([kind or "" for kind in kinds])
    firing = np.asarray((x > 0).sum(0)).ravel()
    columns = np.flatnonzero(firing >= _MIN_FIRING)
    dense = x[:, columns].toarray()
    concepts = []
    for kind, cases in Counter(name for name in names.tolist() if name).most_common():
        if cases < _MIN_CASES:
            continue
        own, right = names == kind, names == ""
        found = _p_values(dense[half & own], dense[half & right])
        adjusted = false_discovery_control(found, method="bh")
        tested = np.flatnonzero(adjusted <= _FALSE_DISCOVERIES)
        again = _p_values(dense[~half & own][:, tested], dense[~half & right][:, tested])
        held = tested[again <= _CONFIRMED]
        order = held[np.argsort(found[held], kind="stable")][:_KEPT]
        features = [
            FailureFeature(
                index=int(latents[columns[column]]),
                fires_with=round(float((dense[own, column] > 0).mean()), 4),
                fires_without=round(float((dense[right, column] > 0).mean()), 4),
                p_found=float(f"{found[column]:.3g}"),
                p_confirmed=float(f"{again[list(tested).index(column)]:.3g}"),
            )
            for column in order
        ]
        concepts.append(FailureConcept(kind, NOTES[kind], cases, len(tested), len(held), features))
    return concepts


def failure_results(
    items: Sequence[Item], max_tokens: int, read: Captured, answers: Answers, labels: Mapping[int, str]
) -> dict[str, Any]:
    """Ask ``items`` plainly and say what ``failures.json`` holds.

    Args:
        items: calibration problems.
        max_tokens: length limit of an answer.
        read: their activations.
        answers: the served model.
        labels: of catalogued features, by index.

    Raises:
        ServerError: the model cannot be asked.
    """
    asked = [Question.of(item.prompt, max_tokens=max_tokens) for item in items]
    kinds = [
        mistake(item, answer["text"]) for item, answer in zip(items, answers.ask(asked, "calibration"), strict=True)
    ]
    x = read.features["text"]
    concepts = failure_concepts(x, kinds, range(x.shape[1]))
    trials = [row for concept in concepts for row in _tried(concept, list(items), kinds, read, answers, max_tokens)]
    wrong = np.array([kind is not None for kind in kinds])
    return {
        "problems": len(items),
        "wrong": int(wrong.sum()),
        "kinds": dict(Counter(kind for kind in kinds if kind)),
        "foreseen": {kind: _foreseen(kind, read, wrong) for kind in ("sae", "dense")},
        "concepts": [
            {**asdict(concept), "labels": [labels.get(feature.index, "") for feature in concept.features]}
            for concept in concepts
        ],
        "trials": trials,
    }


def _tried(
    concept: FailureConcept,
    items: list[Item],
    kinds: Sequence[str | None],
    read: Captured,
    answers: Answers,
    max_tokens: int,
) -> list[dict[str, Any]]:
    """What the concept's note, and a neutral one of its length, do to answers of the half that fitted nothing."""
    found, unseen = _likelihood("sae", read, np.array([kind == concept.kind for kind in kinds]))
    rows = np.flatnonzero(unseen)
    flagged = found[rows] >= np.quantile(found[rows], 0.75)
    before = np.array([kinds[i] is None for i in rows], dtype=float)
    table = []
    (neutral,) = placebo(Notes([None], [concept.note])).texts
    for name, note in (("its own", concept.note), ("neutral", neutral)):
        asked = [Question.of(items[i].prompt + joined_notes([note]), max_tokens=max_tokens) for i in rows]
        given = answers.ask(asked, f"note: {concept.kind}, {name}")
        after = np.array([mistake(items[i], answer["text"]) is None for i, answer in zip(rows, given, strict=True)])
        for where, own in (("everywhere", np.ones(len(rows), dtype=bool)), ("where flagged", flagged)):
            change = after[own].astype(float) - before[own]
            table.append(
                {
                    "kind": concept.kind,
                    "note": name,
                    "where": where,
                    "problems": int(own.sum()),
                    "right_before": round(float(before[own].mean()), 4),
                    "lift": round(float(change.mean()), 4),
                    "interval": interval(change, np.arange(len(change))),
                    "harm": round(float((change < 0).mean()), 4),
                }
            )
    return table


def _likelihood(kind: str, read: Captured, labels: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """How likely ``labels`` are by a readout of the kind ``kind`` that is fitted on one half; and which items it has not seen."""
    count = len(labels)
    half = np.random.default_rng(0).random(count) < 0.5
    data = Labelled(labels.astype(np.int64), half, np.zeros(count, dtype=bool), np.arange(count), np.ones(count), 2)
    return read_labels(kind, read, data).probabilities[:, 1], ~half


def _foreseen(kind: str, read: Captured, wrong: NDArray[np.bool_]) -> dict[str, float]:
    """How well a readout that has not seen a problem foresees that its answer is wrong."""
    found, unseen = _likelihood(kind, read, wrong)
    low, high = np.quantile(found[unseen], [0.25, 0.75])
    return {
        "auc": round(float(roc_auc_score(wrong[unseen], found[unseen])), 4),
        "problems": int(unseen.sum()),
        "wrong_in_lowest_quarter": round(float(wrong[unseen][found[unseen] <= low].mean()), 4),
        "wrong_in_highest_quarter": round(float(wrong[unseen][found[unseen] >= high].mean()), 4),
    }


def _p_values(own: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """One-sided p-values that ``own`` activations ``[n, columns]`` are larger; 1 where nothing can be said."""
    if len(own) < 3 or len(others) < 3 or not own.shape[1]:
        return np.ones(own.shape[1])
    constant = np.vstack([own, others]).max(0) == 0
    with np.errstate(invalid="ignore", divide="ignore"):
        values = mannwhitneyu(own, others, alternative="greater", axis=0).pvalue
    return np.where(constant | ~np.isfinite(values), 1.0, values)


def _gives(pair: tuple[float, float], operation: str, result: float) -> bool:
    value = result_of(operation, *pair)
    return value is not None and same_number(value, result)
