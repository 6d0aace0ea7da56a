"""Concepts by number and by name, whether they are all in memory or fetched when a prompt mentions them.

A concept's number, its ``key``, stays the same for as long as the lookup lives. The mention finder knows forms and keys
alone; concepts are asked for in one go, for those that a prompt really mentions.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import cached_property
from typing import overload

from sae_runtime.catalog.entries import Concept

_TOGETHER = 256  # concepts that are asked for at once when all are read


class ConceptLookup(Sequence[Concept]):
    """Concepts in order, found by key or by slug."""

    @property
    @abstractmethod
    def keys(self) -> Sequence[int]:
        """The keys of all concepts in order."""

    @property
    @abstractmethod
    def free_key(self) -> int:
        """A number above all keys that were ever given."""

    @abstractmethod
    def forms(self) -> Iterable[tuple[int, Sequence[str]]]:
        """The forms of all concepts by key."""

    @abstractmethod
    def many(self, keys: Collection[int]) -> dict[int, Concept]:
        """The concepts of ``keys``.

        Raises:
            CatalogError: they are fetched, and the catalog cannot be read any more.
        """

    @abstractmethod
    def key_of(self, slug: str) -> int | None:
        """The key of the concept ``slug``; None when there is none."""

    @abstractmethod
    def slug_of(self, key: int) -> str:
        """The slug of the concept with this key, without fetching the concept."""

    def named(self, slug: str) -> Concept | None:
        """The concept ``slug``; None when there is none."""
        key = self.key_of(slug)
        return None if key is None else self.many([key])[key]

    def __len__(self) -> int:
        return len(self.keys)

    def __iter__(self) -> Iterator[Concept]:
        for first in range(0, len(self.keys), _TOGETHER):
            yield from self[first : first + _TOGETHER]

    @overload
    def __getitem__(self, place: int) -> Concept: ...
    @overload
    def __getitem__(self, place: slice) -> list[Concept]: ...
    def __getitem__(self, place: int | slice) -> Concept | list[Concept]:
        keys = self.keys[place]
        if isinstance(keys, int):
            return self.many([keys])[keys]
        found = self.many(keys)
        return [found[key] for key in keys]


class ListedConcepts(ConceptLookup):
    """Concepts that are all in memory; keys count from ``first`` on."""

    def __init__(self, concepts: Iterable[Concept], first: int = 0) -> None:
        listed = list(concepts)
        self._concepts = dict(enumerate(listed, first))
        self._keys = {concept.slug: key for key, concept in self._concepts.items()}
        self._range = range(first, first + len(listed))

    @property
    def keys(self) -> Sequence[int]:
        """See :class:`ConceptLookup`."""
        return self._range

    @property
    def free_key(self) -> int:
        """See :class:`ConceptLookup`."""
        return self._range.stop

    def forms(self) -> Iterable[tuple[int, Sequence[str]]]:
        """See :class:`ConceptLookup`."""
        return ((key, concept.forms) for key, concept in self._concepts.items())

    def many(self, keys: Collection[int]) -> dict[int, Concept]:
        """See :class:`ConceptLookup`."""
        return {key: self._concepts[key] for key in keys}

    def key_of(self, slug: str) -> int | None:
        """See :class:`ConceptLookup`."""
        return self._keys.get(slug)

    def slug_of(self, key: int) -> str:
        """See :class:`ConceptLookup`."""
        return self._concepts[key].slug


class OverlaidConcepts(ConceptLookup):
    """The concepts of ``base`` but for those with the keys ``hidden``, and after them ``own``."""

    def __init__(self, base: ConceptLookup, hidden: frozenset[int], own: ListedConcepts) -> None:
        self._base, self._hidden, self._own = base, hidden, own

    @cached_property
    def keys(self) -> Sequence[int]:
        """See :class:`ConceptLookup`."""
        return [key for key in self._base.keys if key not in self._hidden] + list(self._own.keys)

    @property
    def free_key(self) -> int:
        """See :class:`ConceptLookup`."""
        return self._own.free_key

    def forms(self) -> Iterable[tuple[int, Sequence[str]]]:
        """See :class:`ConceptLookup`."""
        yield from ((key, forms) for key, forms in self._base.forms() if key not in self._hidden)
        yield from self._own.forms()

    def many(self, keys: Collection[int]) -> dict[int, Concept]:
        """See :class:`ConceptLookup`."""
        own = [key for key in keys if key in self._own.keys]
        below = [key for key in keys if key not in self._own.keys]
        return {**self._base.many(below), **self._own.many(own)}

    def key_of(self, slug: str) -> int | None:
        """See :class:`ConceptLookup`."""
        if (own := self._own.key_of(slug)) is not None:
            return own
        key = self._base.key_of(slug)
        return None if key in self._hidden else key

    def slug_of(self, key: int) -> str:
        """See :class:`ConceptLookup`."""
        return self._own.slug_of(key) if key in self._own.keys else self._base.slug_of(key)


def concept_lookup(concepts: Iterable[Concept]) -> ConceptLookup:
    """``concepts`` as a lookup; one that is a lookup already stays what it is."""
    return concepts if isinstance(concepts, ConceptLookup) else ListedConcepts(concepts)
