"""The words that people add in the chat: one YAML file per user, beside the shipped catalog and never in it."""

from __future__ import annotations

import hashlib
import os
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from sae_runtime.errors import InputError
from sae_runtime.glossary import Glossary, Term
from sae_runtime.glossary.terms import MAX_TERMS

_LOCAL = "local.yaml"  # no hash is named so
_BREAKS = "\x85\u2028\u2029"  # PyYAML writes them as they are, and reads them as line breaks
_CHANGING = threading.Lock()  # a change reads, then writes; a user may have two tabs open


@dataclass(frozen=True)
class Overlay:
    """One user's own terms in the file ``path``.

    The file is a glossary as developers write it: ``Glossary.from_yaml(path)`` reads it unchanged, and so does
    ``sensecheck ask --glossary``. What is tried in the browser can therefore be handed to a program as it is. It holds
    at most :data:`~sae_runtime.glossary.terms.MAX_TERMS` terms, as any glossary, and is readable by its owner alone.
    """

    path: Path

    @classmethod
    def at(cls, folder: Path, user: str | None) -> Overlay:
        """The overlay of ``user`` in ``folder``; None is whoever sits at this computer.

        File names are hashes, because user names may hold anything.
        """
        name = _LOCAL if user is None else hashlib.sha256(user.encode("utf-8", "surrogatepass")).hexdigest() + ".yaml"
        return cls(folder / name)

    def terms(self) -> Glossary | None:
        """What the user added, or None.

        Raises:
            InputError: the file is damaged; the message names it.
        """
        if not self.path.exists():
            return None
        try:
            return Glossary.from_yaml(self.path)
        except (InputError, ValueError, RecursionError) as error:  # YAML's own dates raise ValueError
            reason = error.message if isinstance(error, InputError) else str(error)
            raise InputError(
                f"The file of your own words, {self.path}, is damaged: {reason}",
                "Repair it, or move it away to start anew.",
            ) from error

    def add(self, term: Term) -> Glossary:
        """Keep ``term``, in the place of the one with the same slug, and return all terms.

        Raises:
            InputError: there are too many, two share a form, or the file is damaged or cannot be written.
        """
        with _CHANGING:
            kept = [other for other in self._listed() if other.slug != term.slug]
            if len(kept) >= MAX_TERMS:
                raise InputError(f"You have {MAX_TERMS} words of your own, which is the limit.", "Remove one first.")
            try:
                glossary = Glossary(terms=[*kept, term])
            except ValidationError as error:
                reasons = "; ".join(_reason(problem) for problem in error.errors())
                raise InputError(f"{reasons}.", "Remove the other word first, or change this one.") from error
            self._write(_dump(glossary.terms))
            return glossary

    def remove(self, slug: str) -> bool:
        """Forget the term with that slug; False when there is none. The file goes with its last term.

        Raises:
            InputError: the file is damaged or cannot be written.
        """
        with _CHANGING:
            terms = self._listed()
            kept = [term for term in terms if term.slug != slug]
            if len(kept) == len(terms):
                return False
            if kept:
                self._write(_dump(kept))
            else:  # a glossary without terms cannot be read
                self.path.unlink(missing_ok=True)
            return True

    def as_yaml(self) -> str:
        """All terms for export, in the form of :meth:`Glossary.from_yaml`; empty when there are none.

        Raises:
            InputError: the file is damaged.
        """
        return _dump(self._listed())

    def _listed(self) -> list[Term]:
        glossary = self.terms()
        return glossary.terms if glossary else []

    def _write(self, text: str) -> None:
        """Write a temporary file, then rename. The temporary file is private from its first byte."""
        partial: Path | None = None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            handle, name = tempfile.mkstemp(dir=self.path.parent, prefix=".", suffix=".partial")
            partial = Path(name)
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            partial.replace(self.path)
        except OSError as error:
            raise InputError(
                f"Your own words cannot be written to {self.path}: {error.strerror or error}.",
                "Make room, or check the folder's permissions.",
            ) from error
        finally:
            if partial is not None:
                partial.unlink(missing_ok=True)  # gone already, unless something went wrong


def _dump(terms: Sequence[Term]) -> str:
    """Terms by name, without what is empty."""
    named = {term.term: term.model_dump(exclude={"term"}, exclude_defaults=True) for term in terms}
    if not named:
        return ""
    text = yaml.safe_dump(named, sort_keys=False, allow_unicode=True, width=120)
    if not any(sign in text for sign in _BREAKS):
        return text
    return yaml.safe_dump(named, sort_keys=False, allow_unicode=False, width=120)


def _reason(problem: Any) -> str:
    return str(problem.get("ctx", {}).get("error", problem["msg"]))
