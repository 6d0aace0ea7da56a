"""One's own words in the chat: from the form to a term that is tried, kept and exported. Layout is in ``words_tab``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from pydantic import ValidationError

from middleware import SAEAnnotator
from sae_runtime.detector.results import Reading
from sae_runtime.errors import EngineError, InputError, SensecheckError
from sae_runtime.glossary import Glossary, Term
from ui.words.overlay import Overlay
from ui.words.render import hint_html, own_terms_html, problem_html, trial_html

MAX_TRIED = 20  # sentences at once
MAX_CHARACTERS = 1000  # of a tried sentence
LABELS = {
    "term": "The word",
    "forms": "Other forms of the word",
    "meaning": "What it means for you",
    "otherwise": "What it is mistaken for",
    "examples": "Sentences with your meaning",
    "counterexamples": "Sentences with the other meaning",
    "note": "The note",
}


def term_from(word: str, meaning: str, otherwise: str, examples: str, counterexamples: str, note: str) -> Term:
    """The term that a filled form describes. ``word`` may list further forms behind commas; ``otherwise`` and the
    sentences stand one per line.

    Raises:
        InputError: something is missing or wrong; the message says what, in the form's own words.
    """
    term, *forms = _parts(word) or [""]
    fields = {
        "term": term, "forms": forms, "meaning": meaning.strip(), "note": note.strip(), "otherwise": _lines(otherwise),
        "examples": _lines(examples), "counterexamples": _lines(counterexamples),
    }  # fmt: skip
    if term and not fields["otherwise"] and not fields["counterexamples"]:
        raise InputError(
            f"Nothing says what “{term}” is mistaken for.",
            "Name the other meaning, or give sentences in which it has it: a reading can only be told from another.",
        )
    try:
        return Term.model_validate(fields)
    except ValidationError as error:
        reasons = "; ".join(dict.fromkeys(_reason(problem) for problem in error.errors()))
        raise InputError(
            f"{reasons}.", "Each sentence must hold the word or one of its forms (list them behind commas)."
            if any(problem["type"] == "value_error" for problem in error.errors()) else "Change the form and try again.",
        ) from error  # fmt: skip


@dataclass(frozen=True)
class OwnWords:
    """What the form's buttons do. Every problem becomes a message in the page."""

    annotator: SAEAnnotator
    folder: Path

    def listed(self, request: gr.Request) -> str:
        """The user's saved words."""
        try:
            return own_terms_html(self._overlay(request).terms())
        except SensecheckError as error:
            return problem_html(error)

    async def tried(self, sentences: str, *fields: str) -> AsyncIterator[str]:
        """Compile the form's word and read ``sentences``, one per line."""
        try:
            term, lines = term_from(*fields), _to_try(sentences)
            yield hint_html(f"Compiling “{term.term}” and reading …")
            yield trial_html(term, await self._read(term, lines))
        except SensecheckError as error:
            yield problem_html(error)

    async def saved(self, request: gr.Request, *fields: str) -> AsyncIterator[tuple[str, str]]:
        """Keep the form's word, then have all words compiled, so that the next message need not wait for it."""
        try:
            term = term_from(*fields)
            glossary = self._overlay(request).add(term)
        except SensecheckError as error:
            yield self.listed(request), problem_html(error)
            return
        listed = own_terms_html(glossary)
        yield listed, hint_html(f"“{term.term}” is saved. Compiling …")
        try:
            await self.annotator.model_copy(update={"glossary": glossary}).aprepare()
        except SensecheckError as error:
            late = EngineError(f"“{term.term}” is saved, but not compiled yet: {error.message}", error.remedy)
            yield listed, problem_html(late)
        else:
            yield listed, hint_html(f"“{term.term}” is saved and holds from your next message on.")

    def removed(self, request: gr.Request, word: str) -> tuple[str, str]:
        """Forget the saved word."""
        try:
            term = self._saved(request, word)
            self._overlay(request).remove(term.slug)
            said = hint_html(f"“{term.term}” is removed.")
        except SensecheckError as error:
            said = problem_html(error)
        return self.listed(request), said

    def opened(self, request: gr.Request, word: str) -> tuple[Any, ...]:
        """The form's six fields filled with the saved word, and a message."""
        try:
            term = self._saved(request, word)
        except SensecheckError as error:
            return (*[gr.skip()] * 6, problem_html(error))
        lines = ["\n".join(texts) for texts in (term.otherwise, term.examples, term.counterexamples)]
        word = ", ".join((term.term, *term.forms))
        return word, term.meaning, *lines, term.note, hint_html(f"“{term.term}” can be changed and saved again.")

    def exported(self, request: gr.Request) -> tuple[str, str]:
        """All saved words as YAML, and a message."""
        try:
            text = self._overlay(request).as_yaml()
        except SensecheckError as error:
            return "", problem_html(error)
        said = "Programs read the file with Glossary.from_yaml." if text else "There are no saved words to export."
        return text, hint_html(said)

    def _overlay(self, request: gr.Request) -> Overlay:
        return Overlay.at(self.folder, request.username)

    def _saved(self, request: gr.Request, word: str) -> Term:
        """The saved word that the form names."""
        name = (_parts(word) or [""])[0].casefold()
        glossary = self._overlay(request).terms()
        for term in glossary.terms if glossary else []:
            if term.term.casefold() == name:
                return term
        raise InputError(f"You have not saved “{name}”." if name else "No word is named.", "Type one of your words.")

    async def _read(self, term: Term, sentences: Sequence[str]) -> list[tuple[str, Reading]]:
        # The word alone, whatever the chat's own settings would leave out; a bypass must be seen.
        settings: dict[str, Any] = {
            "glossary": Glossary(terms=[term]),
            "only": None,
            "without": frozenset(),
            "on_error": "raise",
        }
        reader = self.annotator.model_copy(update=settings)
        await reader.aprepare()
        read = []
        for sentence in sentences:
            found = await reader.aannotate(sentence)
            if found.reading is None:
                raise EngineError(f"“{sentence}” was not read ({found.bypass}).", "Try again.")
            read.append((sentence, found.reading))
        return read


def _to_try(sentences: str) -> list[str]:
    lines = _lines(sentences)
    if not lines:
        raise InputError("There is nothing to try the word on.", "Write a sentence with the word, one per line.")
    if len(lines) > MAX_TRIED or max(map(len, lines)) > MAX_CHARACTERS:
        raise InputError(
            f"At most {MAX_TRIED} sentences of {MAX_CHARACTERS} characters are tried at once.", "Try fewer."
        )
    return lines


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def _parts(words: str) -> list[str]:
    return [part.strip() for part in words.split(",") if part.strip()]


def _reason(problem: Any) -> str:
    """One of pydantic's errors in the form's words."""
    label, limits = LABELS.get(str(problem["loc"][0]) if problem["loc"] else "", "The form"), problem.get("ctx", {})
    match problem["type"]:
        case "string_too_short":
            return f"{label}: write at least {limits['min_length']} characters"
        case "string_too_long":
            return f"{label}: write at most {limits['max_length']} characters"
        case "too_long":
            return f"{label}: give at most {limits['max_length']}"
        case "value_error":
            return str(limits["error"])
    return f"{label}: {problem['msg']}"
