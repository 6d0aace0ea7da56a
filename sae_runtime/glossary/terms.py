"""The glossary as people write it: terms, their meanings, notes, examples."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from sae_runtime.catalog.packs import PLACEHOLDER
from sae_runtime.errors import InputError
from sae_runtime.yaml_file import read_yaml

MAX_TERMS = 64
MAX_EXAMPLES = 24

Sentence = Annotated[str, Field(min_length=1, max_length=400)]


class Term(BaseModel):
    """One term.

    Attributes:
        term: the word or phrase, as it stands in prompts; case does not matter.
        meaning: what it means where this glossary holds, in a few words.
        forms: further spellings and inflections. A plain plural with -s is added by itself.
        note: what a prompt is annotated with; ``{mention}`` stands for the prompt's own words.
        otherwise: what else the term could mean, each in a few words.
        examples: sentences that use the term as it is meant.
        counterexamples: sentences that use it otherwise.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    term: Annotated[str, Field(min_length=2, max_length=60)]
    meaning: Annotated[str, Field(min_length=2, max_length=200)]
    forms: list[Annotated[str, Field(min_length=2, max_length=60)]] = Field(default=[], max_length=48)
    note: Annotated[str, Field(max_length=240)] = ""
    otherwise: list[Annotated[str, Field(min_length=2, max_length=200)]] = Field(default=[], max_length=8)
    examples: list[Sentence] = Field(default=[], max_length=MAX_EXAMPLES)
    counterexamples: list[Sentence] = Field(default=[], max_length=MAX_EXAMPLES)

    @field_validator("otherwise", "examples", "counterexamples", "forms", mode="before")
    @classmethod
    def _one_is_a_list_of_one(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _contrasted(self) -> Term:
        if not self.otherwise and not self.counterexamples:
            raise ValueError(
                f"'{self.term}' needs `otherwise` or `counterexamples`: a reading can only be told from another one"
            )
        for name in ("examples", "counterexamples"):
            for text in getattr(self, name):
                if self.mention(text) is None:
                    raise ValueError(f"'{self.term}' does not occur in its {name[:-1]} '{text}'")
        return self

    @property
    def slug(self) -> str:
        """Name of the term's concept, ``glossary:<term>``."""
        return "glossary:" + re.sub(r"\W+", "-", self.term.lower()).strip("-")

    @property
    def all_forms(self) -> tuple[str, ...]:
        """The term and its other forms, case-folded as prompts are when mentions are looked for."""
        from sae_runtime.detector.mentions import fold  # the detector's package imports this module

        plural = [] if self.term.endswith("s") else [f"{self.term}s"]
        return tuple(dict.fromkeys(fold(form) for form in (self.term, *self.forms, *plural)))

    @property
    def note_text(self) -> str:
        """The note, or one made from the meaning."""
        return self.note or f'"{PLACEHOLDER}" means {self.meaning} here.'

    def mention(self, text: str) -> tuple[int, int] | None:
        """Place of the term's last occurrence in ``text``, or None."""
        from sae_runtime.detector.mentions import fold

        pattern = "|".join(re.escape(form) for form in sorted(self.all_forms, key=len, reverse=True))
        found = list(re.finditer(rf"(?<!\w)(?:{pattern})(?!\w)", fold(text)))
        return found[-1].span() if found else None


class Glossary(BaseModel):
    """A deployer's terms. Immutable; the same terms give the same :attr:`key`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    terms: list[Term] = Field(min_length=1, max_length=MAX_TERMS)

    @model_validator(mode="after")
    def _distinct(self) -> Glossary:
        owner: dict[str, str] = {}
        for term in self.terms:
            for form in term.all_forms:
                if owner.setdefault(form, term.term) != term.term:
                    raise ValueError(f"'{form}' belongs to both '{owner[form]}' and '{term.term}'")
        slugs: dict[str, str] = {}
        for term in self.terms:
            if (other := slugs.get(term.slug)) is not None:
                raise ValueError(
                    f"'{term.term}' is listed twice"
                    if other == term.term
                    else f"'{other}' and '{term.term}' differ in signs only; give one of them as a form of the other"
                )
            slugs[term.slug] = term.term
        return self

    @classmethod
    def from_dict(cls, terms: Mapping[str, Any]) -> Glossary:
        """From ``{"churn": {"meaning": ..., "otherwise": ...}, ...}``, or the form that :meth:`model_dump` gives.

        Raises:
            InputError: a term is incomplete; the message names it.
        """
        value = terms if isinstance(terms.get("terms"), list) else {"terms": _listed(terms)}
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            problems = "; ".join(f"{_place(e['loc'], value)}: {e['msg']}" for e in error.errors())
            raise InputError(f"The glossary is wrong: {problems}.", "See docs/how-to/glossary.md.") from error

    @classmethod
    def from_yaml(cls, path: Path | str) -> Glossary:
        """From a YAML file of the same shape as in :meth:`from_dict`.

        Raises:
            InputError: there is no such file, or it is wrong.
        """
        try:
            value = read_yaml(Path(path))
        except (OSError, yaml.YAMLError) as error:
            raise InputError(f"The glossary {path} cannot be read: {error}.", "Name a YAML file.") from error
        if not isinstance(value, dict):
            raise InputError(f"The glossary {path} holds no terms.", "See docs/how-to/glossary.md.")
        return cls.from_dict(value)

    @cached_property
    def key(self) -> str:
        """A hash of the content. The order of the terms does not matter."""
        terms = sorted(self.model_dump()["terms"], key=lambda term: term["term"])
        text = json.dumps(terms, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _listed(terms: Mapping[str, Any]) -> list[Any]:
    """Terms by name as a list; a string alone is the meaning."""
    return [
        {"term": str(name), **(value if isinstance(value, Mapping) else {"meaning": value})}
        for name, value in terms.items()
    ]


def _place(location: tuple[int | str, ...], value: Mapping[str, Any]) -> str:
    """Where in the glossary an error is, by the term's name."""
    parts = [str(part) for part in location]
    if len(location) > 1 and isinstance(location[1], int):
        entry = value["terms"][location[1]]
        parts[:2] = [f"'{entry.get('term', location[1])}'" if isinstance(entry, Mapping) else parts[1]]
    return ".".join(parts) or "terms"
