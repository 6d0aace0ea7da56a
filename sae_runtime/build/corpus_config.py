"""The corpus part of a build configuration: which text is read, how much of it, and under which licence."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Strict(BaseModel):
    """A configuration model that refuses unknown fields."""

    model_config = ConfigDict(extra="forbid")


class _Source(Strict):
    """What every source has: its name, the licence of its text, and its weight in the mix."""

    name: str
    licence: str
    weight: Annotated[float, Field(gt=0)] = 1.0


class _FileSource(_Source):
    """A source of local files; ``paths`` are glob patterns below the corpus root."""

    paths: list[str]


class TextSource(_FileSource):
    """Plain text files, cut into passages of ``sequence_length`` tokens."""

    kind: Literal["text"]


class DialogueSource(_FileSource):
    """Conversations: blocks of ``Speaker: text`` lines, rendered through the chat template.

    ``column`` reads the blocks from a CSV column; otherwise blocks are separated by blank lines. ``user`` and
    ``assistant`` are the two speakers' names.
    """

    kind: Literal["dialogue"]
    user: str = "User"
    assistant: str = "Assistant"
    column: str | None = None


class RecordSource(_FileSource):
    """JSON or JSON-lines records with a request and an answer, rendered through the chat template.

    ``user`` and ``assistant`` are format strings over the record's fields.
    """

    kind: Literal["records"]
    user: str
    assistant: str


class ChatSource(_FileSource):
    """JSON or JSON-lines records that hold whole conversations, rendered through the chat template.

    ``messages`` names the field with the list of messages. A message has ``role`` and ``content``, or ShareGPT's
    ``from`` and ``value``.
    """

    kind: Literal["chats"]
    messages: str = "messages"


class DatasetSource(_Source):
    """A dataset that ``datasets.load_dataset`` opens: the name of one on the hub, or a folder.

    Exactly one of three says what a record holds: ``text``, the column with plain text; ``messages``, the column with
    a list of messages as in :class:`ChatSource`; or ``user`` and ``assistant``, format strings over the columns as in
    :class:`RecordSource`.
    """

    kind: Literal["dataset"]
    path: str
    config_name: str | None = None
    split: str = "train"
    revision: str | None = None
    text: str | None = None
    messages: str | None = None
    user: str | None = None
    assistant: str | None = None

    @model_validator(mode="after")
    def _one_form(self) -> DatasetSource:
        if (self.user is None) != (self.assistant is None):
            raise ValueError("user and assistant go together")
        if sum(form is not None for form in (self.text, self.messages, self.user)) != 1:
            raise ValueError("give exactly one of text, messages, or user and assistant")
        return self


Source = Annotated[TextSource | DialogueSource | RecordSource | ChatSource | DatasetSource, Field(discriminator="kind")]


class CorpusConfig(Strict):
    """Which text is read and how much of it."""

    root: Path = Path("../shared/data/corpus")
    sources: list[Source]
    sequence_length: Annotated[int, Field(ge=16)] = 256
    train_tokens: int
    validation_tokens: int = 30_000
    test_tokens: int = 30_000

    @model_validator(mode="after")
    def _distinct_names(self) -> CorpusConfig:
        names = [source.name for source in self.sources]
        if len(set(names)) < len(names):
            raise ValueError(f"two sources have the same name: {sorted(names)}")
        return self
