"""What is read, and what one call may change about it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from langchain_core.messages import BaseMessage
from langchain_core.runnables.utils import ConfigurableFieldSpec

from middleware.inputs import is_user, last_user, plain_text
from middleware.types import Scope
from sae_runtime.errors import InputError
from sae_runtime.glossary import Glossary

PREFIX = "sensecheck_"

CALL_OPTIONS = [
    ConfigurableFieldSpec(PREFIX + "domain", str | None, description="The declared domain, such as 'finance'."),
    ConfigurableFieldSpec(PREFIX + "glossary", Glossary | None, description="The terms that hold for this call."),
    ConfigurableFieldSpec(PREFIX + "only", list[str] | None, description="Concepts that may be flagged."),
    ConfigurableFieldSpec(PREFIX + "without", list[str], description="Concepts that are never flagged."),
    ConfigurableFieldSpec(PREFIX + "picks", dict[str, str], description="Senses that the user chose, by concept."),
    ConfigurableFieldSpec(PREFIX + "source", str | None, description="Name of one of the annotator's sources."),
]
"""What ``config={"configurable": {...}}`` may hold for one call; each replaces the annotator's own setting."""


def call_options(configurable: Mapping[str, Any] | None) -> dict[str, Any]:
    """The settings of :data:`CALL_OPTIONS` that a call gives, without their prefix.

    Raises:
        InputError: one of them is of the wrong kind.
    """
    given = {
        spec.id.removeprefix(PREFIX): configurable[spec.id]
        for spec in CALL_OPTIONS
        if configurable and configurable.get(spec.id) is not None
    }
    for name in ("domain", "source"):
        if name in given and not isinstance(given[name], str):
            raise InputError(f"{PREFIX}{name} is a {type(given[name]).__name__}.", "Give a string.")
    for name in ("only", "without"):
        if name in given:
            given[name] = _slugs(name, given[name])
    if "picks" in given and not _texts(given["picks"]):
        raise InputError(f"{PREFIX}picks is no dict of senses by concept.", "Give a dict, such as {'bank': 'river'}.")
    if "glossary" in given and not isinstance(given["glossary"], Glossary):
        if not isinstance(given["glossary"], Mapping):
            raise InputError(f"{PREFIX}glossary is no glossary.", "Give a Glossary, or a dict of terms.")
        given["glossary"] = Glossary.from_dict(given["glossary"])
    return given


def chosen(messages: Sequence[BaseMessage], scope: Scope) -> list[int]:
    """Numbers of the messages to read.

    Raises:
        InputError: none of them has text.
    """
    if scope == "last":
        index = last_user(messages)
        found = [] if index is None else [index]
    else:
        wanted = is_user if scope == "all" else scope
        found = [i for i, m in enumerate(messages) if plain_text(m).strip() and wanted(m)]
    if not found:
        raise InputError("There is no user text to read.", "End the conversation with a user message.")
    return found


def _texts(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(text, str) for pair in value.items() for text in pair)


def _slugs(name: str, value: Any) -> frozenset[str]:
    if isinstance(value, str) or not isinstance(value, Iterable) or not all(isinstance(slug, str) for slug in value):
        raise InputError(f"{PREFIX}{name} is no list of concepts.", "Give a list of slugs, such as ['bank'].")
    return frozenset(value)
