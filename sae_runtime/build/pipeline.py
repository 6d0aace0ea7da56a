"""The whole build in order.

A step that ended before with the same inputs is skipped. A killed build goes on where it was: training with its last
checkpoint, the other long steps with what is missing of their parts; the short steps start again. Fitting the concepts and
publishing take a minute or two and always run. Who does the long steps' work is told by :mod:`.workers`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from sae_runtime.build.concepts import fit_signatures
from sae_runtime.build.config import STAGES, BuildConfig
from sae_runtime.build.contexts import Read, run_contexts
from sae_runtime.build.corpus import fill_corpus
from sae_runtime.build.features.describe import Writer, explained, load_described, run_describe
from sae_runtime.build.features.gates import load_validations, save_validations
from sae_runtime.build.features.validate import Candidate, Setup, context_figures, validate
from sae_runtime.build.folders import check_target
from sae_runtime.build.harvest import Engine, load_counts, load_residual, run_harvest
from sae_runtime.build.imported import import_sae
from sae_runtime.build.measure import run_measure
from sae_runtime.build.metrics import reconstruction_figures
from sae_runtime.build.plan import STEPS, BuildPlan
from sae_runtime.build.publish import Built, publish
from sae_runtime.build.stages import Stage, only_build
from sae_runtime.build.status import free_bytes, needed_bytes
from sae_runtime.build.train import Train, Training, load_trained
from sae_runtime.build.workers import LocalWorkers, Workers
from sae_runtime.engines.dtype import compute_dtype
from sae_runtime.engines.transformers import TransformersEngine
from sae_runtime.errors import InputError
from sae_runtime.paths import artefacts_for, builds_dir
from sae_runtime.progress import console


def run_build(
    config: BuildConfig,
    *,
    out: Path | None = None,
    start: str | None = None,
    until: str = "publish",
    writer: Writer | None = None,
    workers: Workers | None = None,
) -> dict[str, Any] | None:
    """Build dictionary and catalog; returns the card, or None when ``until`` names an earlier stage.

    Args:
        config: see :func:`sae_runtime.build.config.load_config`.
        out: folder of the artefacts; None takes the shipped ones' place.
        start: do this stage and those after it anew, even where they are finished; None: only what is missing.
        until: last stage to run.
        writer: a language model that writes the catalogued features' sentences; None: a template does.
        workers: who does the long steps' work; None: this process. The results are the same.

    Raises:
        InputError: the corpus is absent, there is no such stage, another build of the model is running, the disk is too
            small, or the workers cannot use the configured harvest engine.
        WorkerError: see :mod:`.workers`.
    """
    for stage in (start or until, until):
        if stage not in STAGES:
            raise InputError(f"There is no stage '{stage}'.", f"Stages: {', '.join(STAGES)}.")
    workers = workers or LocalWorkers()
    if config.harvest_engine == "vllm" and not isinstance(workers, LocalWorkers):
        raise InputError(
            "vLLM harvests in one process only.", "Set `harvest_engine: transformers`, or use `--workers local`."
        )
    with only_build(config.model):
        plan = BuildPlan.of(config)
        target = (out or artefacts_for(plan.model.name)).resolve()
        check_target(target)
        build = _Build(plan, writer, workers)
        if start:
            build.forget(start)
        _check_room(plan, until)
        return build.run(until, target)


def _check_room(plan: BuildPlan, until: str) -> None:
    """Say what the build will write, and refuse to begin what the disk cannot hold."""
    needed, free = needed_bytes(plan, until), free_bytes()
    if not needed:
        return
    console.print(f"About {needed / 1e9:.2f} GB will be written to {builds_dir()}; {free / 1e9:.1f} GB are free.")
    if needed > free:
        raise InputError(
            f"The build needs {needed / 1e9:.2f} GB, the disk of {builds_dir()} has {free / 1e9:.2f} GB.",
            "Delete old builds (`sensecheck build status` lists them), or move the cache with SENSECHECK_HOME.",
        )


class _Build:
    """Runs the steps of a plan."""

    def __init__(self, plan: BuildPlan, writer: Writer | None, workers: Workers) -> None:
        self._plan = plan
        self._config = plan.config
        self._steps = plan.steps
        self._writer = writer
        self._workers = workers

    def forget(self, start: str) -> None:
        """Delete what stage ``start`` and those after it have left."""
        for stage in STAGES[STAGES.index(start) :]:
            for step in self._plan.of_stage(stage):
                step.forget()

    def run(self, until: str, target: Path) -> dict[str, Any] | None:
        """See :func:`run_build`."""
        runners: dict[str, Callable[[Stage], Any]] = {
            "corpus": lambda stage: fill_corpus(stage, self._config, self._plan.encoder),
            "harvest": lambda stage: self._harvest(stage, None),
            "train": self._dictionary,
            "measure": self._measure,
            "describe": lambda stage: self._describe(stage, "harvest", "train"),
            "control-harvest": lambda stage: self._harvest(stage, self._config.seed),
            "again": lambda stage: self._train("again", "control-train"),  # two workers can train at once
            "control-train": lambda stage: self._train("control-train"),
            "control-describe": lambda stage: self._describe(stage, "control-harvest", "control-train"),
            "validate": self._validate,
            "contexts": self._contexts,
        }
        for name, owner in STEPS.items():
            if STAGES.index(owner) > STAGES.index(until):
                return None
            step = self._steps[name]
            if not step.done:
                console.print(f"[bold]{name}[/] in {step.folder}", highlight=False)
                runners[name](step)
        if until != "publish":
            return None
        return self._publish(target)

    def _engine(self, random_seed: int | None = None) -> Callable[[], TransformersEngine]:
        """What opens the model, or its random twin, here or in a worker."""
        return partial(
            TransformersEngine,
            self._plan.model.path.absolute(),
            self._config.layer,
            dtype=compute_dtype(self._config.dtype),
            random_seed=random_seed,
        )

    def _vllm_engine(self) -> Engine:
        from sae_runtime.build.vllm_engine import VLLMEngine

        dtype, length = compute_dtype(self._config.dtype), self._config.corpus.sequence_length
        return VLLMEngine(self._plan.model.path, self._config.layer, dtype=dtype, context_length=length)

    def _harvest(self, stage: Stage, random_seed: int | None) -> None:
        vllm = self._config.harvest_engine == "vllm" and random_seed is None
        run_harvest(
            stage,
            self._steps["corpus"],
            self._vllm_engine if vllm else self._engine(random_seed),
            batch_tokens=self._config.harvest_batch_tokens,
            train_tokens=None if random_seed is None else self._config.validation.control_tokens,
            workers=self._workers,
        )

    def _dictionary(self, stage: Stage) -> None:
        if self._config.sae:
            import_sae(
                stage, self._config.sae, d_in=TransformersEngine.width(self._plan.model.path), layer=self._config.layer
            )
        else:
            self._train("train")

    def _train(self, *names: str) -> None:
        """Those of the training runs ``names`` that have not ended."""
        runs = [self._training(name) for name in names if not self._steps[name].done]
        with closing(self._workers.run(Train(), runs)) as ended:
            for run in ended:
                console.print(f"{run.stage.name} has ended", highlight=False)

    def _training(self, name: str) -> Training:
        """The run of one dictionary: ``train``, ``again`` (another seed) or ``control-train`` (the twin's)."""
        config = self._config
        harvest = "control-harvest" if name == "control-train" else "harvest"
        metadata = {"model_name": self._plan.model.name, "hook_name": f"blocks.{config.layer}.hook_resid_post"}
        settings = config.train if name == "train" else config.repeated()
        if name == "control-train":  # fewer tokens, as many steps
            every, some = (load_counts(self._steps[step])["train"] for step in ("harvest", harvest))
            settings = settings.model_copy(update={"epochs": settings.epochs * every / some})
        return Training(self._steps[name], self._steps[harvest], settings, config.seed + (name == "again"), metadata)

    def _measure(self, stage: Stage) -> None:
        run_measure(stage, self._plan, load_trained(self._steps["train"]))
        console.print(f"dictionary: {stage.summary()}")

    def _describe(self, stage: Stage, harvest: str, train: str) -> None:
        steps, plan = self._steps, self._plan
        model = plan.model if train == "train" else None
        encoded = explained(stage, steps[train], steps[harvest])
        run_describe(stage, model, steps["corpus"], encoded, plan.encoder.tokenizer, plan.words, self._workers)

    def _validate(self, stage: Stage) -> None:
        config, steps = self._config, self._steps
        setup = Setup(steps["corpus"], self._plan.words, config.validation, config.seed, self._workers)
        trained, harvest = steps["control-train"], steps["control-harvest"]
        model = Candidate(steps["train"], steps["again"], steps["describe"], steps["harvest"], self._engine())
        twin = Candidate(trained, None, steps["control-describe"], harvest, self._engine(config.seed))
        results, figures = validate(model, setup, stage.parts / "model")
        twins, control = validate(twin, setup, stage.parts / "control")
        control |= reconstruction_figures(load_trained(trained), load_residual(harvest, "test")["residual"])
        save_validations(stage, results)
        save_validations(stage, twins, control=True)
        stage.finish({**figures, **context_figures(results), "control": {**control, **context_figures(twins)}})
        console.print(f"validation: {stage.summary()}")

    def _contexts(self, stage: Stage) -> None:
        job = Read(self._engine(), self._plan.model.path.absolute(), partial(load_trained, self._steps["train"]))
        run_contexts(stage, job, self._plan.packs, self._workers)

    def _publish(self, target: Path) -> dict[str, Any]:
        steps, plan = self._steps, self._plan
        results = load_validations(steps["validate"])
        allowed = [result.index for result in results if result.readable(self._config.concepts)]
        if not allowed:
            raise InputError(
                "No latent is stable enough for a signature.",
                "Train on more text, or relax `concepts.min_correlation` in the configuration.",
            )
        sae = load_trained(steps["train"])
        built = Built(
            plan=plan,
            sae=sae,
            descriptions=load_described(steps["describe"], plan.words).items,
            validations=results,
            signatures=fit_signatures(
                plan.packs, steps["contexts"], sae, allowed, plan.config.concepts, plan.config.seed
            ),
            writer=self._writer,
        )
        return publish(built, target)
