"""The LangChain runnable: messages in, messages out, with a note for each word that the model misreads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

from langchain_core.callbacks import AsyncCallbackManagerForChainRun, CallbackManagerForChainRun
from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import BaseMessage
from langchain_core.runnables import RunnableConfig, RunnableSerializable
from langchain_core.runnables.utils import ConfigurableFieldSpec
from pydantic import ConfigDict, Field, PrivateAttr

from middleware.events import ReadingEvent, adispatch, dispatch, payload
from middleware.jobs import Job, by_source, fail, settle
from middleware.placement import place_notes
from middleware.policy import FailurePolicy, Stats
from middleware.scope import CALL_OPTIONS
from middleware.sources import CatalogSource, InspectionRequest, InspectionSource, ServerSource
from middleware.tracing import annotation_span
from middleware.types import Annotated, Placement, Scope
from sae_runtime.detector.results import Reading
from sae_runtime.errors import EngineError
from sae_runtime.glossary import Glossary
from sae_runtime.models import DEFAULT_MODEL

AnnotatorInput = LanguageModelInput | Mapping[str, Any]
# LangChain hands a run's manager to functions that take its configuration, too.
_Run: TypeAlias = CallbackManagerForChainRun
_ARun: TypeAlias = AsyncCallbackManagerForChainRun


class SAEAnnotator(RunnableSerializable[AnnotatorInput, list[BaseMessage]]):
    """Reads the prompt inside the model and adds short notes where it is misread.

    It takes what a chat model takes and returns messages, so it stands between a prompt and a model::

        chain = prompt | SAEAnnotator.from_catalog() | model

    Nothing but the notes is added, the input is never changed, and when nothing is flagged the very same messages come
    out. If the reading fails or is late, the untouched messages go on (``on_error="pass"``); :attr:`stats` counts it, the
    event ``sensecheck.reading`` and the ``sensecheck`` logger say so. Immutable, safe to share between threads, and
    picklable when its source is.

    For one call, ``config={"configurable": {...}}`` replaces ``domain``, ``glossary``, ``only``, ``without``, ``picks`` and ``source``
    under the names in :data:`middleware.scope.CALL_OPTIONS`.

    Attributes:
        source: where readings come from; see :meth:`from_catalog` and :meth:`from_url`.
        sources: further sources by name, for tenants with catalogs of their own; a call chooses one.
        placement: where notes go.
        read: which messages are read: ``"last"`` user message, ``"all"`` user messages, or those that a function chooses.
        domain: the deployer's declared domain, such as ``"finance"``; its senses count as intended.
        glossary: the deployer's own terms; see :class:`~sae_runtime.glossary.Glossary`.
        only: slugs of the concepts that may be flagged; None: all.
        without: slugs of concepts that are never flagged.
        picks: senses that the user chose, by concept, such as ``{"bank": "river"}``; they are always noted.
        observe: read and report, but add nothing.
        messages_key: where an input that is a dict holds its messages.
        deadline: seconds that a reading may take at most.
        grace: seconds that it may take beyond what the model itself has needed for such prompts; None: as long as
            ``deadline`` allows. It holds as soon as a few readings have shown how fast the model is.
        on_error: ``"pass"`` sends the untouched prompt on, ``"raise"`` raises the error.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, frozen=True)

    source: InspectionSource = Field(exclude=True)
    sources: Mapping[str, InspectionSource] = Field(default={}, exclude=True, repr=False)
    placement: Placement = "after"
    read: Scope = "last"
    domain: str | None = None
    glossary: Glossary | None = Field(default=None, repr=False)
    only: frozenset[str] | None = None
    without: frozenset[str] = frozenset()
    picks: Mapping[str, str] = {}
    observe: bool = False
    messages_key: str = "messages"
    deadline: float = Field(default=5.0, gt=0)
    grace: float | None = Field(default=0.3, ge=0)
    on_error: Literal["pass", "raise"] = "pass"

    _policy: FailurePolicy = PrivateAttr(default_factory=FailurePolicy)

    @classmethod
    def from_catalog(
        cls,
        model: str = DEFAULT_MODEL,
        *,
        artefacts: Path | None = None,
        catalog: Path | str | None = None,
        device: str = "cpu",
        **options: Any,
    ) -> SAEAnnotator:
        """Read in this process with the artefacts of ``model`` (shipped ones unless ``artefacts`` names a folder).

        ``catalog`` names another file, or a database such as ``postgresql://user@host/database``, instead of the folder's
        ``catalog.sqlite``. ``options`` are the other attributes of the class.

        Raises:
            ModelError, ArtefactError, FingerprintError: model and artefacts are absent or do not belong together.
        """
        return cls(source=CatalogSource.open(model, artefacts=artefacts, catalog=catalog, device=device), **options)

    @classmethod
    def from_url(
        cls, url: str, *, api_key: str | None = None, artefacts: Path | None = None, **options: Any
    ) -> SAEAnnotator:
        """Read through a server started by ``sensecheck serve``.

        Args:
            url: the server's root.
            api_key: its key, when it asks for one.
            artefacts: folder of a catalog; readings of a server that uses another one are refused.
            options: the other attributes of the class.

        Raises:
            CatalogError: there is no usable catalog in ``artefacts``.
        """
        return cls(source=ServerSource(url, api_key=api_key, artefacts=artefacts), **options)

    @property
    def stats(self) -> Stats:
        """Counters of readings, flags and bypasses."""
        return self._policy.stats

    @property
    def config_specs(self) -> list[ConfigurableFieldSpec]:
        """What a call's ``configurable`` may hold."""
        return CALL_OPTIONS

    def invoke(self, input: AnnotatorInput, config: RunnableConfig | None = None, **kwargs: Any) -> list[BaseMessage]:
        """Messages to send to the model."""

        def run(value: AnnotatorInput, run_manager: _Run, config: RunnableConfig) -> list[BaseMessage]:
            return self.annotate(value, config).messages

        return self._call_with_config(run, input, config)

    async def ainvoke(
        self, input: AnnotatorInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> list[BaseMessage]:
        """Like :meth:`invoke`, without blocking the event loop."""

        async def run(value: AnnotatorInput, run_manager: _ARun, config: RunnableConfig) -> list[BaseMessage]:
            return (await self.aannotate(value, config)).messages

        return await self._acall_with_config(run, input, config)

    def batch(
        self,
        inputs: list[AnnotatorInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[list[BaseMessage]]:
        """Messages of several prompts, which are read together; at most ``max_concurrency`` at once."""

        def run(
            values: list[AnnotatorInput], run_manager: list[_Run], config: list[RunnableConfig]
        ) -> list[Exception | list[BaseMessage]]:
            return [_messages(found) for found in self.annotate_batch(values, config)]

        return self._batch_with_config(run, inputs, config, return_exceptions=return_exceptions)

    async def abatch(
        self,
        inputs: list[AnnotatorInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[list[BaseMessage]]:
        """Like :meth:`batch`, without blocking the event loop."""

        async def run(
            values: list[AnnotatorInput], run_manager: list[_ARun], config: list[RunnableConfig]
        ) -> list[Exception | list[BaseMessage]]:
            return [_messages(found) for found in await self.aannotate_batch(values, config)]

        return await self._abatch_with_config(run, inputs, config, return_exceptions=return_exceptions)

    def annotate(self, input: AnnotatorInput, config: RunnableConfig | None = None) -> Annotated:
        """The messages together with the reading and the notes, for programs that show them.

        Raises:
            InputError: the input is nothing that a chat model takes (whatever ``on_error`` says).
            SensecheckError: the reading failed and ``on_error`` is ``"raise"``.
        """
        (found,) = self.annotate_batch([input], [config or {}])
        if isinstance(found, Exception):
            raise found
        return found

    async def aannotate(self, input: AnnotatorInput, config: RunnableConfig | None = None) -> Annotated:
        """Like :meth:`annotate`, without blocking the event loop."""
        (found,) = await self.aannotate_batch([input], [config or {}])
        if isinstance(found, Exception):
            raise found
        return found

    def prepare(self, timeout: float = 120.0) -> None:
        """Have the glossary compiled now, so that no prompt waits for it.

        Raises:
            SensecheckError: it could not be compiled, or not in ``timeout`` seconds.
        """
        if self.glossary:
            self.source.inspect(self._first_request(), deadline=timeout)

    async def aprepare(self, timeout: float = 120.0) -> None:
        """Like :meth:`prepare`, without blocking the event loop."""
        if self.glossary:
            await self.source.ainspect(self._first_request(), deadline=timeout)

    def _first_request(self) -> InspectionRequest:
        return InspectionRequest([{"role": "user", "content": "Hello."}], [0], glossary=self.glossary)

    def annotate_batch(
        self, inputs: Sequence[AnnotatorInput], configs: Sequence[RunnableConfig] | None = None
    ) -> list[Annotated | Exception]:
        """Like :meth:`annotate` for several prompts, which are read together; errors stand in their prompts' places."""
        configs = configs or [{}] * len(inputs)
        jobs = [Job.of(self, value, config) for value, config in zip(inputs, configs, strict=True)]
        for some in by_source(jobs):
            source, requests, deadline = some[0].source, [job.request for job in some], self._deadline(some)
            try:
                with annotation_span(some), self._policy.guard(some[0].name):
                    if len(some) == 1:
                        some[0].outcome = source.inspect(requests[0], deadline=deadline)
                    else:
                        limit = configs[0].get("max_concurrency")
                        settle(some, source.inspect_batch(requests, deadline=deadline, limit=limit))
            except Exception as error:
                fail(some, error)
        results = [self._result(job) for job in jobs]
        for event, config in self._events(jobs, configs):
            dispatch(event, config)
        return results

    async def aannotate_batch(
        self, inputs: Sequence[AnnotatorInput], configs: Sequence[RunnableConfig] | None = None
    ) -> list[Annotated | Exception]:
        """Like :meth:`annotate_batch`, without blocking the event loop."""
        configs = configs or [{}] * len(inputs)
        jobs = [Job.of(self, value, config) for value, config in zip(inputs, configs, strict=True)]
        for some in by_source(jobs):
            source, requests, deadline = some[0].source, [job.request for job in some], self._deadline(some)
            try:
                with annotation_span(some), self._policy.guard(some[0].name):
                    if len(some) == 1:
                        some[0].outcome = await source.ainspect(requests[0], deadline=deadline)
                    else:
                        limit = configs[0].get("max_concurrency")
                        settle(some, await source.ainspect_batch(requests, deadline=deadline, limit=limit))
            except Exception as error:
                fail(some, error)
        results = [self._result(job) for job in jobs]
        for event, config in self._events(jobs, configs):
            await adispatch(event, config)
        return results

    def _events(
        self, jobs: Sequence[Job], configs: Sequence[RunnableConfig]
    ) -> Iterator[tuple[ReadingEvent, RunnableConfig]]:
        """What the callbacks are told, and whose they are."""
        for job, config in zip(jobs, configs, strict=True):
            if job.result and config.get("callbacks"):
                yield payload(job.result, annotated=not self.observe), config

    def _deadline(self, jobs: Sequence[Job]) -> float:
        sizes = (job.request.characters for job in jobs)
        return self._policy.deadline(sizes, self.deadline, self.grace, jobs[0].name)

    def _result(self, job: Job) -> Annotated | Exception:
        """What a job ends with; its result is kept for the event also where an error is raised."""
        if job.unreadable:
            return job.unreadable
        error = job.outcome or EngineError("There is no reading.", "Report it.")
        if isinstance(error, Reading):
            try:
                annotated = job.result = self._annotated(job, error)
                return annotated
            except Exception as problem:
                error = EngineError("The reading does not fit the prompt.", "Use one version here and on the server.")
                error.__cause__ = problem
        job.result = Annotated(job.messages, [], None, self._policy.count_bypass(error))
        return error if self.on_error == "raise" else job.result

    def _annotated(self, job: Job, reading: Reading) -> Annotated:
        placed = place_notes(job.messages, reading.misreads, self.placement)
        self._policy.count_reading(reading, job.request.characters, job.name)
        messages, places = (job.messages, []) if self.observe else (placed.messages, placed.places)
        return Annotated(messages, placed.notes, reading, None, places, placed.left_out)


def _messages(found: Annotated | Exception) -> Exception | list[BaseMessage]:
    return found if isinstance(found, Exception) else found.messages
