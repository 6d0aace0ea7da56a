"""Private data in text, by its shape: e-mail addresses, keys and passwords, telephone and other long numbers.

Pure functions over one string, in time linear in its length: each rule looks at whole runs of characters, once. Where in
doubt they take too much (a long link with digits counts as a key). They know shapes, not meanings: names, streets and
birthdays stay, so does what is split by invisible characters, spelt out (``ann at example dot org``), or a number of
fewer than seven digits.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

Kind = Literal["key", "email", "number"]

_MIN_DIGITS = 7  # the shortest local telephone number
_MIN_KEY = 20
_MIN_PREFIXED_KEY = 12

_PEM = r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----(?s:.*?)(?:-----END [A-Z ]{0,40}PRIVATE KEY-----|\Z)"
_LABEL = r"(?i:pass(?:word|wd|phrase)|pwd|api[ _-]?key|secret(?:[ _-]?key)?|token|bearer)"
_MASKED = r"\[(?:key|email|number)\]"
_LABELLED = rf"{_LABEL}[\"']?(?:\s{{0,4}}[:=]\s{{0,4}}|(?<=[Bb]earer)\s{{1,4}})[\"']?(?P<value>(?:(?!{_MASKED})[^\s\"',;]){{4,}})"
_PREFIX = re.compile(r"(?:[spr]k|hf|gh[opsur]|github_pat|glpat|npm|pypi|xox[abeoprs])[-_]|AKIA|ASIA|AIza|ya29|eyJ")
_ADDRESS = re.compile(r"\w@[\w-]+\.\w")
_YEAR_OR_SMALL = re.compile(r"(?:1\d|20)\d\d|\d{1,2}")
_DATE = re.compile(r"\d{1,2}([./-])\d{1,2}\1\d{4}|\d{4}([./-])\d{1,2}\2\d{1,2}")
_SEPARATORS = r"[ \u00a0\u2009\u202f./()\u2010\u2011\u2012\u2013-]"


@dataclass(frozen=True)
class Private:
    """A stretch of text that looks private: characters ``start`` to ``end``, and what it looks like."""

    start: int
    end: int
    kind: Kind


def redact(text: str) -> str:
    """``text`` with ``[key]``, ``[email]`` or ``[number]`` in the place of what looks private.

    The rest stays as it is, and redacting again changes nothing.
    """
    kept, at = [], 0
    for found in find_private(text):
        kept += [text[at : found.start], f"[{found.kind}]"]
        at = found.end
    return "".join([*kept, text[at:]])


def find_private(text: str) -> list[Private]:
    """The stretches that look private, in order and without overlap; offsets count characters."""
    found: list[Private] = []
    for kind, pattern, judge in _RULES:
        for start, end in list(_gaps(found, len(text))):
            # Cut out, so that a rule sees what it would see between two masks: that makes redacting twice the same.
            for match in pattern.finditer(text[start:end]):
                if span := judge(match):
                    found.append(Private(start + span[0], start + span[1], kind))
        found.sort(key=lambda one: one.start)
    return found


def _gaps(found: list[Private], length: int) -> Iterator[tuple[int, int]]:
    at = 0
    for one in found:
        yield at, one.start
        at = one.end
    yield at, length


_Span = tuple[int, int]


def _whole(match: re.Match[str]) -> _Span | None:
    return match.span()


def _value(match: re.Match[str]) -> _Span | None:
    return match.span("value")


def _address(match: re.Match[str]) -> _Span | None:
    """A run with an address in it, without the punctuation of the sentence around."""
    run = match[0]
    if not _ADDRESS.search(run):
        return None
    start = match.start() + len(run) - len(run.lstrip(".+%'-"))
    return start, match.end() - (len(run) - len(run.rstrip(".+%'-")))


def _key(match: re.Match[str]) -> _Span | None:
    """A run that begins like a known kind of key, or is long and mixes letters and digits."""
    run = match[0]
    known = len(run) >= _MIN_PREFIXED_KEY and _PREFIX.match(run)
    mixed = len(run) >= _MIN_KEY and any(map(str.isdigit, run)) and any(map(str.isalpha, run))
    return match.span() if known or mixed else None


def _number(match: re.Match[str]) -> _Span | None:
    """Seven digits or more, grouped or not, that are neither a date nor years nor a list of small numbers."""
    run = match[0]
    groups = re.findall(r"\d+", run)
    if sum(map(len, groups)) < _MIN_DIGITS or _DATE.fullmatch(run):
        return None
    if run[0] not in "+(0" and all(map(_YEAR_OR_SMALL.fullmatch, groups)):
        return None
    return match.span()


_RULES: list[tuple[Kind, re.Pattern[str], Callable[[re.Match[str]], _Span | None]]] = [
    ("key", re.compile(_PEM), _whole),
    ("key", re.compile(_LABELLED), _value),
    ("email", re.compile(r"[\w.+%'@-]+"), _address),
    ("key", re.compile(r"[A-Za-z0-9_+/=-]+"), _key),
    ("number", re.compile(rf"[+(]{{0,2}}\d(?:{_SEPARATORS}{{0,3}}\d)*"), _number),
]
