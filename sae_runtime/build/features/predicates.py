"""Descriptions that a machine can check: predicates over token properties, found automatically for each latent.

Families, from simple to rich:

- ``word``: the token's word is one of a set;
- ``pair``: as ``word``, but where the word before tells more, that decides (a back-off from pairs to words);
- ``topic``: one of a set of words stands among the token and the twelve before it;
- ``place``: how far into the text the token stands;
- ``source``: which kind of text it is from.

A set has at most 24 members. A member enters when the latent fires on more than a share of its occurrences in one half of the explain part; the
share and the family are chosen by F1 on the other half. Scores on unseen text come later (:mod:`.validate`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from sae_runtime.build.features.tokens import PLACES, TokenTable, Words

Mask = NDArray[np.bool_]
_SHARES = (0.25, 0.4, 0.55, 0.7)
_MIN_PAIR = 3  # occurrences from which a pair is believed rather than its word
_MEMBERS = 24  # words or pairs in a set: a longer list could describe anything, and nobody would read it
_SIMPLER = 0.02  # F1 that a richer family must gain
_GOOD = 0.8  # F1 from which richer families are not tried
_NAMED = 5  # members that a sentence names


class Predicate(ABC):
    """A yes-or-no statement about tokens."""

    family: ClassVar[str]

    @abstractmethod
    def holds(self, table: TokenTable) -> Mask:
        """Where it is true, ``[rows]``."""

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """Readable and complete."""

    @abstractmethod
    def sentence(self) -> str:
        """What it says."""

    @property
    def examples(self) -> list[tuple[int, int]]:
        """Up to five (word before or -1 for any, word) that fit; empty when the family has none."""
        return []

    @property
    def described_words(self) -> NDArray[np.int64]:
        """Numbers of all words that it names as such, strongest first; empty when the family names none."""
        return np.array([], dtype=np.int64)


@dataclass(frozen=True)
class WordSet(Predicate):
    """The token's word is in ``members``, strongest first."""

    words: Words
    members: NDArray[np.int64]
    family = "word"

    def holds(self, table: TokenTable) -> Mask:
        """See :class:`Predicate`."""
        return _lookup(self.members, len(self.words))[table.word]

    def to_json(self) -> dict[str, Any]:
        """See :class:`Predicate`."""
        return {"family": self.family, "words": _names(self.words, self.members), "members": self.members.tolist()}

    def sentence(self) -> str:
        """See :class:`Predicate`."""
        return f"Fires on {_listed(self.words, self.members)}."

    @property
    def described_words(self) -> NDArray[np.int64]:
        """See :class:`Predicate`."""
        return self.members

    @property
    def examples(self) -> list[tuple[int, int]]:
        """See :class:`Predicate`."""
        return [(-1, int(word)) for word in self.members[:_NAMED]]


@dataclass(frozen=True)
class PairSet(Predicate):
    """The pair is in ``yes``, or its word is in ``members`` and the pair is not in ``no`` (pairs as in the table)."""

    words: Words
    members: NDArray[np.int64]
    yes: NDArray[np.int64]
    no: NDArray[np.int64]
    family = "pair"

    def holds(self, table: TokenTable) -> Mask:
        """See :class:`Predicate`."""
        concerned = np.concatenate([self.members, self.yes % len(self.words)])
        at = np.flatnonzero(_lookup(concerned, len(self.words))[table.word])  # few, so that looking for pairs is cheap
        by_word, pair = _lookup(self.members, len(self.words))[table.word[at]], table.pair[at]
        mask = np.zeros(len(table), dtype=bool)
        mask[at] = (by_word & ~np.isin(pair, self.no)) | np.isin(pair, self.yes)
        return mask

    def to_json(self) -> dict[str, Any]:
        """See :class:`Predicate`."""
        return {
            "family": self.family,
            "words": _names(self.words, self.members),
            "also": [list(self._spelled(pair)) for pair in self.yes],
            "not": [list(self._spelled(pair)) for pair in self.no],
            "members": self.members.tolist(),
            "yes": self.yes.tolist(),
            "no": self.no.tolist(),
        }

    def sentence(self) -> str:
        """See :class:`Predicate`."""
        parts = []
        if len(self.yes):
            parts.append("on " + ", ".join(f"“{' '.join(self._spelled(p)).strip()}”" for p in self.yes[:_NAMED]))
        if len(self.members):
            parts.append(f"on {_listed(self.words, self.members)}")
        text = "Fires " + " and ".join(parts)
        if len(self.no):
            text += ", but not on " + ", ".join(f"“{' '.join(self._spelled(p)).strip()}”" for p in self.no[:3])
        return text + "."

    @property
    def examples(self) -> list[tuple[int, int]]:
        """See :class:`Predicate`."""
        pairs = [divmod(int(pair), len(self.words)) for pair in self.yes[:_NAMED]]
        return [(before - 1, word) for before, word in pairs] or [(-1, int(word)) for word in self.members[:_NAMED]]

    @property
    def described_words(self) -> NDArray[np.int64]:
        """See :class:`Predicate`."""
        named = np.concatenate([self.yes % len(self.words), self.members])
        return named[np.sort(np.unique(named, return_index=True)[1])]

    def _spelled(self, pair: int) -> tuple[str, str]:
        before, word = divmod(int(pair), len(self.words))
        return (self.words.names[before - 1] if before else ""), self.words.names[word]


class TopicSet(WordSet):
    """One of ``members`` stands among the token's word and those before it."""

    family = "topic"

    def holds(self, table: TokenTable) -> Mask:
        """See :class:`Predicate`."""
        member = _lookup(self.members, len(self.words) + 1)  # the last place stands for -1, the beginning
        return member[table.word] | member[table.before].any(1)

    def sentence(self) -> str:
        """See :class:`Predicate`."""
        return f"Fires near {_listed(self.words, self.members)}."


@dataclass(frozen=True)
class Bucket(Predicate):
    """A property with few values (``place`` or ``source``) has one of these."""

    family: str  # type: ignore[misc]
    members: NDArray[np.int64]
    names: list[str]

    def holds(self, table: TokenTable) -> Mask:
        """See :class:`Predicate`."""
        return _lookup(self.members, len(self.names))[getattr(table, self.family)]

    def to_json(self) -> dict[str, Any]:
        """See :class:`Predicate`."""
        values = [self.names[member] for member in self.members]
        return {"family": self.family, "values": values, "members": self.members.tolist(), "names": self.names}

    def sentence(self) -> str:
        """See :class:`Predicate`."""
        where = " or ".join(self.names[member] for member in self.members)
        return f"Fires {where}." if self.family == "place" else f"Fires in text of the kind {where}."


def from_json(value: dict[str, Any], words: Words) -> Predicate | None:
    """The inverse of :meth:`Predicate.to_json`, for the same tokenizer; None for an empty one."""
    if not value:
        return None
    numbers = {name: np.array(value[name], dtype=np.int64) for name in ("members", "yes", "no") if name in value}
    if value["family"] == "pair":
        return PairSet(words, **numbers)
    if value["family"] in ("word", "topic"):
        return (WordSet if value["family"] == "word" else TopicSet)(words, **numbers)
    return Bucket(value["family"], numbers["members"], value["names"])


@dataclass(frozen=True)
class Halves:
    """The two halves of the explain part: predicates are fitted on ``fit`` and chosen on ``choose``."""

    fit: TokenTable
    choose: TokenTable
    sources: list[str]


class Finder:
    """Finds the best predicate of a latent.

    Args:
        halves: the explain part.
    """

    def __init__(self, halves: Halves) -> None:
        self._halves = halves
        table = halves.fit
        self._words = table.words
        self._word_counts = np.bincount(table.word, minlength=len(self._words))
        self._near_counts = self._near(np.arange(len(table)))
        self._pairs, self._pair_of, self._pair_counts = np.unique(table.pair, return_inverse=True, return_counts=True)

    def best(self, fit_rows: NDArray[Any], choose_rows: NDArray[Any]) -> Predicate | None:
        """The predicate for a latent that fires on these rows of the two halves, or None when none predicts anything."""
        if not len(fit_rows) or not len(choose_rows):
            return None
        fires = np.zeros(len(self._halves.choose), dtype=bool)
        fires[choose_rows] = True
        best, best_score = None, 0.0
        for family in (self._word_sets, self._pair_sets, self._topics, self._buckets):
            scored = [(f1(predicate.holds(self._halves.choose), fires), predicate) for predicate in family(fit_rows)]
            if not scored:
                continue
            score, predicate = max(scored, key=lambda item: item[0])
            if score > best_score + (_SIMPLER if best else 0.0):
                best, best_score = predicate, score
            if best_score > _GOOD:
                break
        return best

    def _word_sets(self, rows: NDArray[Any]) -> Iterator[Predicate]:
        values, share = self._shares(self._halves.fit.word[rows], self._word_counts)
        for least in _SHARES:
            if len(members := values[share > least][:_MEMBERS]):
                yield WordSet(self._words, members)

    def _pair_sets(self, rows: NDArray[Any]) -> Iterator[Predicate]:
        words, word_share = self._shares(self._halves.fit.word[rows], self._word_counts)
        fired = np.bincount(self._pair_of[rows], minlength=len(self._pairs))
        # Pairs whose word the latent knows; those it never fires on may be exceptions.
        known = np.flatnonzero(_lookup(words, len(self._words))[self._pairs % len(self._words)])
        known = known[self._pair_counts[known] >= _MIN_PAIR]
        share = fired[known] / (self._pair_counts[known] + 1)
        order = np.argsort(-fired[known], kind="stable")
        known, share = known[order], share[order]
        for least in _SHARES:
            members = words[word_share > least][:_MEMBERS]
            by_word = _lookup(members, len(self._words))[self._pairs[known] % len(self._words)]
            yes = known[(share > least) & ~by_word][:_MEMBERS]
            no = known[(share < least / 2) & by_word][:_MEMBERS]
            if len(yes) or (len(no) and len(members)):
                yield PairSet(self._words, members, self._pairs[yes], self._pairs[no])

    def _topics(self, rows: NDArray[Any]) -> Iterator[Predicate]:
        fired = self._near(rows)
        values = np.flatnonzero(fired >= 5)
        share = fired[values] / (self._near_counts[values] + 5)
        order = np.argsort(-share, kind="stable")[:_MEMBERS]
        values, share = values[order], share[order]
        for least in _SHARES[:3]:
            if len(members := values[share > least]):
                yield TopicSet(self._words, members)

    def _buckets(self, rows: NDArray[Any]) -> Iterator[Predicate]:
        for family, names in (("place", list(PLACES)), ("source", self._halves.sources)):
            column = getattr(self._halves.fit, family)
            values, share = self._shares(column[rows], np.bincount(column, minlength=len(names)))
            for least in _SHARES[:2]:
                if len(members := values[share > least]):
                    yield Bucket(family, members, names)

    def _near(self, rows: NDArray[Any]) -> NDArray[np.int64]:
        table = self._halves.fit
        nearby = table.before[rows].ravel()
        size = len(self._words)
        return np.bincount(nearby[nearby >= 0], minlength=size) + np.bincount(table.word[rows], minlength=size)

    @staticmethod
    def _shares(fired: NDArray[Any], counts: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Values among ``fired`` and on which share of their occurrences the latent fires; most frequent first."""
        values, times = np.unique(fired, return_counts=True)
        order = np.argsort(-times, kind="stable")
        values, times = values[order].astype(np.int64), times[order]
        return values, times / (counts[values] + 1)


def f1(says: Mask, fires: Mask) -> float:
    """Harmonic mean of precision and recall."""
    both = int((says & fires).sum())
    return 2 * both / max(1, int(says.sum()) + int(fires.sum()))


def _lookup(members: NDArray[np.int64], size: int) -> Mask:
    table = np.zeros(size, dtype=bool)
    table[members] = True
    return table


def _names(words: Words, members: NDArray[np.int64]) -> list[str]:
    return [words.names[member] for member in members]


def _listed(words: Words, members: NDArray[np.int64]) -> str:
    named = ", ".join(f"“{name}”" for name in _names(words, members[:_NAMED]))
    more = len(members) - _NAMED
    return named + (f" and {more} more words" if more > 0 else "")
