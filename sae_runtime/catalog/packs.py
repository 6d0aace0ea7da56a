"""Concept packs: the readable YAML from which catalogs are seeded, one file per concept."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from sae_runtime.errors import PackError
from sae_runtime.paths import PACKS

PLACEHOLDER = "{mention}"
MIN_CONTEXTS = 16
_BRACKETED = re.compile(r"\[([^\[\]]+)\]")
_Slug = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]


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

    gloss: Annotated[str, Field(min_length=3, max_length=120)]
    note: Annotated[str, Field(min_length=10, max_length=240)]
    domains: Annotated[list[str], Field(min_length=1)]
    cues: list[str] = []
    contexts: list[str]
    held_out: list[str]

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


class ConceptPack(BaseModel):
    """One concept as its YAML file holds it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    concept: _Slug
    forms: Annotated[list[str], Field(min_length=1)]
    senses: Annotated[dict[_Slug, SensePack], Field(min_length=2)]

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
    slugs = [concept.concept for concepts in packs.values() for concept in concepts]
    if repeated := sorted({slug for slug in slugs if slugs.count(slug) > 1}):
        raise PackError(f"The concepts {', '.join(repeated)} occur in several packs.", "Rename or remove one of each.")
    owners: dict[str, str] = {}
    for concept in (concept for concepts in packs.values() for concept in concepts):
        for form in {form.lower() for form in concept.forms}:
            if owners.setdefault(form, concept.concept) != concept.concept:
                raise PackError(
                    f"The form '{form}' belongs to '{owners[form]}' and to '{concept.concept}'.", "Keep one."
                )
    return packs


def load_concept(path: Path) -> ConceptPack:
    """Read one concept file.

    Raises:
        PackError: it is no YAML, or a rule of the format is broken.
    """
    try:
        return ConceptPack.model_validate(yaml.safe_load(path.read_text("utf-8")))
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise PackError(f"{path}: {faults}.", "See docs/packs.md for the format.") from error
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise PackError(f"{path} cannot be read: {error}.", "See docs/packs.md for the format.") from error
