"""What the sub-commands of ``sensecheck eval`` do: open the artefacts, read, ask the served model, write the results."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sae_runtime.build.stages import write_text
from sae_runtime.catalog.packs import concepts_of, load_packs
from sae_runtime.detector import Inspector
from sae_runtime.detector.artefacts import Artefacts
from sae_runtime.engines.chat import ChatEncoder
from sae_runtime.engines.dtype import compute_dtype
from sae_runtime.engines.transformers import TransformersEngine
from sae_runtime.errors import InputError
from sae_runtime.evaluation.answers import Answers
from sae_runtime.evaluation.arms import check_arms
from sae_runtime.evaluation.capture import Captured, captured
from sae_runtime.evaluation.failures import FAILURES, failure_results
from sae_runtime.evaluation.flags import FLAGS, flag_results, flag_rows
from sae_runtime.evaluation.items import Item, Split
from sae_runtime.evaluation.notes import figures, store, try_notes
from sae_runtime.evaluation.prompts import CALIBRATION_SETS, PlantedPrompt, calibration_prompts, planted_prompts
from sae_runtime.evaluation.run import RESULTS, Run, save
from sae_runtime.evaluation.sources import SOURCES, source_items, source_results
from sae_runtime.evaluation.tasks import task_named
from sae_runtime.evaluation.tasks.maths import Maths
from sae_runtime.paths import CARD_FILE, CATALOG_FILE
from sae_runtime.progress import console
from sae_runtime.sae import load_sae
from sae_runtime.sae.fingerprint import fingerprint_sae
from ui.backend import open_backend


def run_task(
    name: str,
    model: str,
    data: Path,
    out: Path,
    arms: list[str],
    limits: dict[str, int],
    *,
    sae: Path | None,
    url: str | None,
    artefacts: Path | None,
    ask: bool,
) -> None:
    """Run the task ``name``; results go to ``out/NAME-MODEL/results.json``, caches to ``out/cache``.

    Raises:
        InputError: unknown task or arm, or the data are not there.
        ServerError: the model cannot be asked.
    """
    wanted = check_arms(arms)
    task = task_named(name, limits)
    items = task.load(data)
    opened, folder, read = _read(items, model, out, sae, artefacts)
    about = {
        "model": opened.view.model_name,
        "dictionary": {"layer": opened.view.layer, "fingerprint": fingerprint_sae(folder)},
        "licence": task.licence,
        "limits": limits,
    }
    with _answers(model, out, url, artefacts) if ask else nullcontext() as answers:
        results = Run(task, items, read, answers, wanted, about, out / "cache").results()
    _saved(results, out, out / f"{name}-{opened.view.model_name}" / RESULTS)


def run_failures(
    name: str,
    model: str,
    data: Path,
    out: Path,
    problems: int,
    *,
    sae: Path | None,
    url: str | None,
    artefacts: Path | None,
) -> None:
    """Ask the task's fit problems, sort mistakes, find the features that go with them; ``out/failures-NAME-MODEL/failures.json``.

    Raises:
        InputError: the task is not about word problems.
        ServerError: the model cannot be asked.
    """
    task = task_named(name, {"fit": problems, "dev": 0, "test": 0})
    if not isinstance(task, Maths):
        raise InputError(f"'{name}' has no word problems.", "Choose svamp, mawps, asdiv or gsm8k.")
    items = [item for item in task.load(data) if not item.part_of]
    opened, folder, read = _read(items, model, out, sae, artefacts)
    with _answers(model, out, url, artefacts) as answers:
        found = failure_results(
            items, task.max_tokens, read, answers, {i: f.label for i, f in opened.view.features.items()}
        )
    about = {"task": name, "model": opened.view.model_name, "dictionary": fingerprint_sae(folder)}
    _saved({**about, **found}, out, out / f"failures-{name}-{opened.view.model_name}" / FAILURES)


def run_planted(prompts: str, model: str, out: Path, *, url: str | None, artefacts: Path | None, ask: bool) -> None:
    """Flag the set ``prompts`` and ask about it; results go to ``out/planted-SET-MODEL/flags.json``.

    Raises:
        InputError: there is no such set.
        ServerError: the model cannot be asked.
    """
    items = planted_prompts(prompts)
    inspector = Inspector.from_model(model, artefacts=artefacts)
    rows = flag_rows(inspector, items)
    inspector.engine.close()
    name = inspector.view.model_name
    with _answers(model, out, url, artefacts) if ask else nullcontext() as answers:
        results = {"set": prompts, "model": name, **flag_results(rows, answers)}
    _saved(results, out, out / f"planted-{prompts}-{name}" / FLAGS)


def run_sources(prompts: str, model: str, out: Path, *, sae: Path | None, artefacts: Path | None) -> None:
    """Compare sources of the intended sense on the set ``prompts``; ``out/sources-SET-MODEL/sources.json``.

    Raises:
        InputError: there is no such set, or thresholds are chosen on it.
    """
    if prompts in CALIBRATION_SETS:
        raise InputError(f"Thresholds are chosen on '{prompts}'.", "Compare sources on test or examples.")
    planted: list[tuple[Split, PlantedPrompt]] = [
        *(("dev", prompt) for prompt in calibration_prompts()),
        *(("test", prompt) for prompt in planted_prompts(prompts)),
    ]
    items = source_items(concepts_of(load_packs()), planted)
    opened, folder, read = _read(items, model, out, sae, artefacts)
    concepts = {concept.slug: concept for concept in opened.view.concepts}
    about = {"set": prompts, "model": opened.view.model_name, "dictionary": fingerprint_sae(folder)}
    found = source_results(items, planted, concepts, read)
    _saved({**about, **found}, out, out / f"sources-{prompts}-{opened.view.model_name}" / SOURCES)


def run_notes(model: str, out: Path, *, url: str | None, artefacts: Path | None, write: bool, as_json: bool) -> None:
    """Try the catalog's notes and print what was found; with ``write`` the catalog and the card keep it.

    Raises:
        ServerError: the model cannot be asked.
        CatalogError: the catalog cannot be written.
    """
    opened = Artefacts.open(model, folder=artefacts)
    known = {concept.slug for concept in opened.view.concepts}
    packs = {name: [pack for pack in group if pack.concept in known] for name, group in load_packs().items()}
    with _answers(model, out, url, artefacts) as answers:
        trials = try_notes(packs, answers)
    found = figures(trials)
    if write:
        store(trials, opened.folder / CATALOG_FILE)
        card = json.loads((opened.folder / CARD_FILE).read_text("utf-8"))
        write_text(opened.folder / CARD_FILE, json.dumps({**card, "notes": found}, indent=1) + "\n")
    if as_json:
        print(json.dumps({**found, "trials": [asdict(trial) for trial in trials]}, indent=1))
    else:
        for name, value in found.items():
            print(f"{name.replace('_', ' ')}: {value}")


def _read(
    items: list[Item], model: str, out: Path, sae: Path | None, artefacts: Path | None
) -> tuple[Artefacts, Path, Captured]:
    """The artefacts, the folder of the dictionary, and what it reads in ``items``."""
    opened = Artefacts.open(model, folder=artefacts)
    folder = sae or opened.folder
    engine = TransformersEngine(opened.model.path, opened.view.layer, dtype=compute_dtype())
    encoder = ChatEncoder(opened.model.path)
    read = captured(items, engine, encoder, load_sae(folder), fingerprint_sae(folder), out / "cache")
    engine.close()
    return opened, folder, read


@contextmanager
def _answers(model: str, out: Path, url: str | None, artefacts: Path | None) -> Iterator[Answers]:
    """The served model with its cache in ``out``."""
    with open_backend(model, url=url, artefacts=artefacts) as server:
        yield Answers(server.url, server.model, out / "cache" / "answers.jsonl", api_key=server.api_key)


def _saved(results: dict[str, Any], out: Path, path: Path) -> None:
    save(results, path)
    console.print(f"{path} holds the results; `sensecheck eval report {out}` shows them.")
