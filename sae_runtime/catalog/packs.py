"""Concept packs: the readable YAML from which catalogs are seeded, one file per concept."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from sae_runtime.errors import PackError
from sae_runtime.paths import PACKS
from sae_runtime.yaml_file import faults, read_yaml

PLACEHOLDER = "{mention}"
MIN_CONTEXTS = 16
MAX_FILE = 2**20
"""Bytes of a concept's file; the shipped ones have up to 7,000."""
_BRACKETED = re.compile(r"\[([^\[\]]+)\]")


def _plain(text: str) -> str:
    """``text``, if it is one line without control and format characters; joiners, which words of some scripts need, may be."""
    if found := [char for char in text if unicodedata.category(char)[0] == "C" and char not in "\u200c\u200d"]:
        raise ValueError(f"holds the control character U+{ord(found[0]):04X}")
    return text


_Slug = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=60)]
_Word = Annotated[str, Field(min_length=1, max_length=60), AfterValidator(_plain)]
_Sentence = Annotated[str, Field(max_length=400), AfterValidator(_plain)]


@dataclass(frozen=True)
class LabelledContext:
    """A text with one marked mention: ``text[start:end]``."""

    text: str
    start: int
    end: int

    @property
    def mention(self) -> str:
        """The marked words."""
        return self.text[self.start : self.end]


def parse_context(marked: str) -> LabelledContext:
    """Read a text whose mention stands in [square brackets].

    Raises:
        ValueError: there is not exactly one bracketed mention.
    """
    found = list(_BRACKETED.finditer(marked))
    if len(found) != 1:
        raise ValueError(f"needs exactly one [mention], has {len(found)}: {marked!r}")
    match = found[0]
    text = marked[: match.start()] + match[1] + marked[match.end() :]
    return LabelledContext(text, match.start(), match.start() + len(match[1]))


class SensePack(BaseModel):
    """One sense: ``contexts`` fit the signature, ``held_out`` measures it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    gloss: Annotated[str, Field(min_length=3, max_length=120), AfterValidator(_plain)]
    note: Annotated[str, Field(min_length=10, max_length=240), AfterValidator(_plain)]
    domains: Annotated[list[_Word], Field(min_length=1, max_length=16)]
    cues: Annotated[list[_Word], Field(max_length=200)] = []
    contexts: Annotated[list[_Sentence], Field(max_length=500)]
    held_out: Annotated[list[_Sentence], Field(max_length=500)]

    @field_validator("note")
    @classmethod
    def _one_placeholder(cls, note: str) -> str:
        if note.count(PLACEHOLDER) != 1:
            raise ValueError(f"needs {PLACEHOLDER} exactly once: {note!r}")
        return note

    @model_validator(mode="after")
    def _enough_contexts(self) -> SensePack:
        total = len(self.contexts) + len(self.held_out)
        if total < MIN_CONTEXTS or len(self.held_out) * 4 < total:
            raise ValueError(
                f"needs {MIN_CONTEXTS} contexts, a quarter held out; has {total}, {len(self.held_out)} held out"
            )
        return self

    def labelled(self, *, held_out: bool) -> list[LabelledContext]:
        """The contexts of one part."""
        return [parse_context(text) for text in (self.held_out if held_out else self.contexts)]

    def all_labelled(self) -> list[tuple[bool, LabelledContext]]:
        """The contexts of both parts, each with whether it is held out; the others first."""
        return [(held, context) for held in (False, True) for context in self.labelled(held_out=held)]


class ConceptPack(BaseModel):
    """One concept as its YAML file holds it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    concept: _Slug
    forms: Annotated[list[_Word], Field(min_length=1, max_length=100)]
    senses: Annotated[dict[_Slug, SensePack], Field(min_length=2, max_length=16)]

    @model_validator(mode="after")
    def _consistent(self) -> ConceptPack:
        forms = {form.lower() for form in self.forms}
        cues: dict[str, str] = {}
        domains: dict[str, str] = {}
        seen: set[str] = set()
        for name, sense in self.senses.items():
            for marked in [*sense.contexts, *sense.held_out]:
                context = parse_context(marked)
                if context.mention.lower() not in forms:
                    raise ValueError(f"sense '{name}': [{context.mention}] is not among the forms")
                key = re.sub(r"\W+", " ", context.text.lower()).strip()
                if key in seen:
                    raise ValueError(f"sense '{name}': duplicate context {context.text!r}")
                seen.add(key)
            for kind, words, owner in (("cue", sense.cues, cues), ("domain", sense.domains, domains)):
                for word in words:
                    if owner.setdefault(word.lower(), name) != name:
                        raise ValueError(f"{kind} '{word}' belongs to two senses")
        return self


Packs = Mapping[str, Sequence[ConceptPack]]
"""Concept packs by name."""


def concepts_of(packs: Packs) -> list[ConceptPack]:
    """The concepts of all packs, in their order."""
    return [concept for group in packs.values() for concept in group]


def load_packs(names: list[str] | None = None, folder: Path = PACKS) -> dict[str, list[ConceptPack]]:
    """Read packs by name (None: all in ``folder``); concepts are sorted by slug.

    Raises:
        PackError: a pack is absent or malformed; the message names file and fault.
    """
    if not folder.is_dir():
        raise PackError(f"There is no pack folder {folder}.", "Check the path.")
    wanted = names if names is not None else sorted(path.name for path in folder.iterdir() if path.is_dir())
    packs = {name: [load_concept(path) for path in sorted((folder / name).glob("*.yaml"))] for name in wanted}
    if empty := [name for name, concepts in packs.items() if not concepts]:
        raise PackError(
            f"There are no concepts in {', '.join(str(folder / name) for name in empty)}.", "Check the pack names."
        )
    slugs = [concept.concept for concept in concepts_of(packs)]
    if repeated := sorted({slug for slug in slugs if slugs.count(slug) > 1}):
        raise PackError(f"The concepts {', '.join(repeated)} occur in several packs.", "Rename or remove one of each.")
    owners: dict[str, str] = {}
    for concept in concepts_of(packs):
        for form in {form.lower() for form in concept.forms}:
            if owners.setdefault(form, concept.concept) != concept.concept:
                raise PackError(
                    f"The form '{form}' belongs to '{owners[form]}' and to '{concept.concept}'.", "Keep one."
                )
    return packs


def load_concept(path: Path) -> ConceptPack:
    """Read one concept file.

    Raises:
        PackError: it is no YAML, too large, or a rule of the format is broken.
    """
    try:
        if path.stat().st_size > MAX_FILE:
            raise PackError(f"{path} has more than {MAX_FILE} bytes.", "See docs/packs.md for the format.")
        return ConceptPack.model_validate(read_yaml(path))
    except ValidationError as error:
        raise PackError(f"{path}: {faults(error)}.", "See docs/packs.md for the format.") from error
    except (OSError, yaml.YAMLError) as error:
        raise PackError(f"{path} cannot be read: {error}.", "See docs/packs.md for the format.") from error
