"""Features and concepts of a large catalog: they stay in the database, and what prompts mention is fetched and kept.

So what an open catalog takes, and what a prompt costs, does not grow with what lies in it: a concept that is mentioned for
the first time costs a few look-ups by index, and the ones mentioned last stay in memory.
"""

from __future__ import annotations

import threading
import weakref
from array import array
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Generic, TypeVar

from sqlalchemy import Connection, Engine, func, select
from sqlalchemy.exc import DBAPIError

from sae_runtime.catalog.entries import Concept, Feature
from sae_runtime.catalog.loading import load_concepts, load_features, texts
from sae_runtime.catalog.location import CatalogLocation
from sae_runtime.catalog.lookup import ConceptLookup
from sae_runtime.catalog.store import catalog_engine, database_failure, senseless
from sae_runtime.catalog.tables import BuildRow, ConceptRow, FeatureRow, SaeRow
from sae_runtime.errors import CatalogError

KEPT_CONCEPTS = 2_000  # some 50 kB each, with 96 features and 95 cues per sense
KEPT_FEATURES = 50_000
_PAGE = 10_000  # features that are asked for at once when all are read
_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


class CatalogConnection:
    """A read-only connection that stays open, for several threads, one at a time.

    A SQLite file that was opened is read to the end, even when another one takes its place. On PostgreSQL, and where a file
    is written over, each use checks that the catalog is still that of the same build.

    Raises:
        CatalogError: the catalog cannot be read.
    """

    def __init__(self, location: CatalogLocation) -> None:
        self._location = location
        self._lock = threading.Lock()
        engine = catalog_engine(location, writable=False)
        try:
            self._connection = engine.connect()
        except DBAPIError as error:
            raise database_failure(error, location, "read") from error
        weakref.finalize(self, _close, self._connection, engine)
        self._build = None
        with self.reading() as connection:
            self._build = _build(connection)

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """The connection, in a transaction of its own.

        Raises:
            CatalogError: the catalog is locked, damaged, gone, or of another build than when it was opened.
        """
        with self._lock:
            try:
                if self._build is not None and _build(self._connection) != self._build:
                    raise CatalogError(f"The catalog {self._location} was replaced.", "Open it again.")
                yield self._connection
            except DBAPIError as error:
                raise database_failure(error, self._location, "read") from error
            except (ValueError, TypeError, LookupError, AttributeError) as error:
                raise senseless(error, self._location) from error
            finally:
                self._connection.rollback()  # whoever wants to write is not kept waiting


def _build(connection: Connection) -> tuple[object, ...]:
    newest = select(BuildRow.created_at).order_by(BuildRow.id.desc()).limit(1)
    return connection.scalar(select(func.min(SaeRow.fingerprint))), connection.scalar(newest)


def _close(connection: Connection, engine: Engine) -> None:
    connection.close()
    engine.dispose()


class StoredFeatures(Mapping[int, Feature]):
    """Features by index in the full dictionary."""

    def __init__(self, connection: CatalogConnection, count: int) -> None:
        self._connection = connection
        self._count = count
        self._recent: Recent[int, Feature] = Recent(KEPT_FEATURES)

    def fetch(self, indices: Collection[int]) -> dict[int, Feature]:
        """The catalogued ones among ``indices``, by one query for those that were not asked for lately.

        Raises:
            CatalogError: the catalog cannot be read any more.
        """
        found, missing = self._recent.get(indices)
        if missing:
            with self._connection.reading() as connection:
                new = load_features(connection, missing)
            self._recent.put(new)
            found |= new
        return found

    def forget(self) -> None:
        """Drop what was fetched."""
        self._recent.forget()

    def __getitem__(self, index: int) -> Feature:
        return self.fetch([index])[index]

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[int]:
        last = -1
        query = select(FeatureRow.id, FeatureRow.index, FeatureRow.label, FeatureRow.density).order_by(FeatureRow.id)
        while True:
            with self._connection.reading() as connection:
                rows = connection.execute(query.where(FeatureRow.id > last).limit(_PAGE)).all()
                page = {index: Feature(index, label, density) for _, index, label, density in rows}
            if not rows:
                return
            last = rows[-1][0]
            self._recent.put(page)  # whoever goes through all of them asks for each next
            yield from page


class StoredConcepts(ConceptLookup):
    """Concepts in the order of their slugs; what is in memory of all of them is slug and number."""

    def __init__(self, connection: CatalogConnection) -> None:
        self._connection = connection
        with connection.reading() as reading:
            rows = sorted((slug, id_) for id_, slug in reading.execute(select(ConceptRow.id, ConceptRow.slug)))
        self._slugs = [slug for slug, _ in rows]
        self._ids = array("q", (id_ for _, id_ in rows))
        self._recent: Recent[int, Concept] = Recent(KEPT_CONCEPTS)

    @property
    def keys(self) -> Sequence[int]:
        """See :class:`ConceptLookup`."""
        return range(len(self._ids))

    @property
    def free_key(self) -> int:
        """See :class:`ConceptLookup`."""
        return len(self._ids)

    def forms(self) -> Iterable[tuple[int, Sequence[str]]]:
        """See :class:`ConceptLookup`."""
        key_of = {id_: key for key, id_ in enumerate(self._ids)}
        with self._connection.reading() as connection:
            rows = connection.execute(select(ConceptRow.id, ConceptRow.forms)).all()
            return [(key_of[id_], tuple(texts(forms))) for id_, forms in rows]

    def many(self, keys: Collection[int]) -> dict[int, Concept]:
        """See :class:`ConceptLookup`."""
        found, missing = self._recent.get(keys)
        if missing:
            with self._connection.reading() as connection:
                rows = load_concepts(connection, [self._ids[key] for key in missing])
                new = {key: rows[self._ids[key]] for key in missing}
            self._recent.put(new)
            found |= new
        return found

    def key_of(self, slug: str) -> int | None:
        """See :class:`ConceptLookup`."""
        key = bisect_left(self._slugs, slug)
        return key if key < len(self._slugs) and self._slugs[key] == slug else None

    def slug_of(self, key: int) -> str:
        """See :class:`ConceptLookup`."""
        return self._slugs[key]

    def forget(self) -> None:
        """Drop what was fetched."""
        self._recent.forget()


class Recent(Generic[_Key, _Value]):
    """The values used last, at most ``size``. Safe to share between threads."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._values: OrderedDict[_Key, _Value] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, keys: Iterable[_Key]) -> tuple[dict[_Key, _Value], list[_Key]]:
        """What is here of ``keys``, and the keys of what is not."""
        found, missing = {}, []
        with self._lock:
            for key in dict.fromkeys(keys):
                if key in self._values:
                    self._values.move_to_end(key)
                    found[key] = self._values[key]
                else:
                    missing.append(key)
        return found, missing

    def put(self, values: Mapping[_Key, _Value]) -> None:
        """Keep ``values``; those used longest ago go."""
        with self._lock:
            self._values.update(values)
            while len(self._values) > self._size:
                self._values.popitem(last=False)

    def forget(self) -> None:
        """Keep nothing."""
        with self._lock:
            self._values.clear()
