"""The LangChain runnable: messages in, messages out, with a note for each word that the model misreads."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import BaseMessage
from langchain_core.runnables import RunnableConfig, RunnableSerializable
from pydantic import ConfigDict, Field, PrivateAttr

from middleware.inputs import last_user, to_chat, to_messages
from middleware.placement import place_notes
from middleware.policy import FailurePolicy, Stats
from middleware.sources import CatalogSource, InspectionSource, ServerSource
from middleware.types import Annotated, Placement
from sae_runtime.detector.results import Reading
from sae_runtime.engines.chat import ChatMessage
from sae_runtime.errors import InputError
from sae_runtime.models import DEFAULT_MODEL


class SAEAnnotator(RunnableSerializable[LanguageModelInput, list[BaseMessage]]):
    """Reads the prompt inside the model and adds short notes where it is misread.

    It takes what a chat model takes and returns messages, so it stands between a prompt and a model::

        chain = prompt | SAEAnnotator.from_catalog() | model

    The last user message is read. Nothing but the notes is added, the input is never changed, and when nothing is
    flagged the very same messages come out. If the reading fails or is late, the untouched messages go on
    (``on_error="pass"``); :attr:`stats` counts it and the ``sensecheck`` logger says so.

    Attributes:
        source: where readings come from; see :meth:`from_catalog` and :meth:`from_url`.
        placement: where notes go.
        domain: the deployer's declared domain, such as ``"finance"``; its senses count as intended.
        deadline: seconds that a reading may take.
        on_error: ``"pass"`` sends the untouched prompt on, ``"raise"`` raises the error.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, frozen=True)

    source: InspectionSource = Field(exclude=True, repr=False)
    placement: Placement = "after"
    domain: str | None = None
    deadline: float = Field(default=5.0, gt=0)
    on_error: Literal["pass", "raise"] = "pass"

    _policy: FailurePolicy = PrivateAttr(default_factory=FailurePolicy)

    @classmethod
    def from_catalog(
        cls, model: str = DEFAULT_MODEL, *, artefacts: Path | None = None, device: str = "cpu", **options: Any
    ) -> SAEAnnotator:
        """Read in this process with the artefacts of ``model`` (shipped ones unless ``artefacts`` names a folder).

        ``options`` are the other attributes of the class.

        Raises:
            ModelError, ArtefactError, FingerprintError: model and artefacts are absent or do not belong together.
        """
        return cls(source=CatalogSource.open(model, artefacts=artefacts, device=device), **options)

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

    def invoke(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> list[BaseMessage]:
        """Messages to send to the model."""
        return self._call_with_config(lambda value: self.annotate(value).messages, input, config)

    async def ainvoke(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> list[BaseMessage]:
        """Like :meth:`invoke`, without blocking the event loop."""

        async def run(value: LanguageModelInput) -> list[BaseMessage]:
            return (await self.aannotate(value)).messages

        return await self._acall_with_config(run, input, config)

    def annotate(self, input: LanguageModelInput) -> Annotated:
        """The messages together with the reading and the notes, for programs that show them.

        Raises:
            InputError: the input is nothing that a chat model takes (whatever ``on_error`` says).
            SensecheckError: the reading failed and ``on_error`` is ``"raise"``.
        """
        messages = to_messages(input)
        try:
            request = self._request(messages)
            with self._policy.guard():
                reading = self.source.inspect(**request)
            return self._annotated(messages, reading)
        except Exception as error:
            return self._bypass(messages, error)

    async def aannotate(self, input: LanguageModelInput) -> Annotated:
        """Like :meth:`annotate`, without blocking the event loop."""
        messages = to_messages(input)
        try:
            request = self._request(messages)
            with self._policy.guard():
                reading = await self.source.ainspect(**request)
            return self._annotated(messages, reading)
        except Exception as error:
            return self._bypass(messages, error)

    def _request(self, messages: list[BaseMessage]) -> dict[str, Any]:
        index = last_user(messages)
        if index is None:
            raise InputError("There is no user text to read.", "End the conversation with a user message.")
        # Later messages (an assistant's prefix, tool results) stay in: they are part of what the model sees.
        chat: list[ChatMessage] = to_chat(messages)
        return {"messages": chat, "domain": self.domain, "read": [index], "deadline": self.deadline}

    def _annotated(self, messages: list[BaseMessage], reading: Reading) -> Annotated:
        placed = place_notes(messages, reading.misreads, self.placement)
        self._policy.count_reading(flagged=bool(reading.misreads))
        return Annotated(placed, [misread.note for misread in reading.misreads], reading, None)

    def _bypass(self, messages: list[BaseMessage], error: Exception) -> Annotated:
        reason = self._policy.count_bypass(error)
        if self.on_error == "raise":
            raise error
        return Annotated(messages, [], None, reason)
