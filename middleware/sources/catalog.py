"""Readings in this process, with the transformers engine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from pathlib import Path
from typing import Any

from middleware.sources.base import InspectionRequest, Outcome
from sae_runtime.catalog.location import CatalogLocation, catalog_location
from sae_runtime.detector import Inspector, Reading
from sae_runtime.errors import InspectionTimeout
from sae_runtime.models import DEFAULT_MODEL
from sae_runtime.serving.reload import CatalogState, CatalogWatch, reopen

_WORKERS = 4


class CatalogSource:
    """Reads in this process with the transformers engine, on a few worker threads. Use :meth:`open`.

    Args:
        inspector: does the reading.
        tokens: also read every token of the prompt, for people who look at it; else only what its mentions need.

    A source made by :meth:`open` can be pickled: where it is unpickled, it opens the same artefacts again. When the folder
    of its artefacts is replaced, as a build does it, it reads with the new ones from some moment after the next second on;
    readings that have begun end with the old ones. New ones that do not fit are refused (:attr:`catalog`).
    """

    def __init__(self, inspector: Inspector, *, tokens: bool = False) -> None:
        self.inspector = inspector
        self.tokens = tokens
        self._opened: dict[str, Any] | None = None
        self._watch: CatalogWatch | None = None
        self._pool = ThreadPoolExecutor(_WORKERS, thread_name_prefix="sensecheck")

    @classmethod
    def open(
        cls,
        model: str = DEFAULT_MODEL,
        *,
        artefacts: Path | None = None,
        catalog: CatalogLocation | str | None = None,
        device: str = "cpu",
    ) -> CatalogSource:
        """Open a model with its shipped or given artefacts; see :meth:`Inspector.from_model`.

        A pickled source holds the URL of ``catalog`` with its password.
        """
        place = None if catalog is None else catalog_location(catalog)
        source = cls(Inspector.from_model(model, artefacts=artefacts, catalog=place, device=device))
        source._opened = {"model": model, "artefacts": artefacts, "catalog": place, "device": device}
        opened = source.inspector.opened
        if opened is not None and opened.file is not None and isinstance(opened.catalog, Path):
            source._watch = CatalogWatch(opened.catalog, opened.file, source._renewed)
        return source

    @property
    def catalog(self) -> CatalogState | None:
        """Which catalog file reads, and why another one that lies there is refused; None when no file is watched."""
        return None if self._watch is None else self._watch.state

    def __reduce__(self) -> Any:
        if self._opened is None:
            raise TypeError("A source made from an open inspector cannot be pickled; use CatalogSource.open.")
        return _reopen, (self._opened, self.tokens)

    def __repr__(self) -> str:
        view = self.inspector.view
        return f"CatalogSource({view.model_name!r}, sae={view.sae_fingerprint!r})"

    def inspect(self, request: InspectionRequest, *, deadline: float) -> Reading:
        """See :class:`InspectionSource`. A reading that is late goes on in its thread and is dropped."""
        return self._wait(self._submit(request), deadline)

    async def ainspect(self, request: InspectionRequest, *, deadline: float) -> Reading:
        """See :class:`InspectionSource`."""
        return await self._await(self._submit(request), deadline)

    def inspect_batch(
        self, requests: Sequence[InspectionRequest], *, deadline: float, limit: int | None = None
    ) -> list[Outcome]:
        """See :class:`InspectionSource`. Prompts are computed together, padded to the longest of at most ``limit``."""
        try:
            return self._wait(self._submit_batch(requests, limit), deadline)
        except InspectionTimeout as error:
            return [error] * len(requests)

    async def ainspect_batch(
        self, requests: Sequence[InspectionRequest], *, deadline: float, limit: int | None = None
    ) -> list[Outcome]:
        """See :class:`InspectionSource`."""
        try:
            return await self._await(self._submit_batch(requests, limit), deadline)
        except InspectionTimeout as error:
            return [error] * len(requests)

    def _submit(self, request: InspectionRequest) -> Future[Reading]:
        options = request.options() | {"tokens": self.tokens}
        self._look()
        return self._pool.submit(lambda: self.inspector.inspect(request.messages, **options))

    def _submit_batch(self, requests: Sequence[InspectionRequest], limit: int | None) -> Future[list[Outcome]]:
        self._look()
        asked = [(request.messages, request.options() | {"tokens": self.tokens}) for request in requests]
        return self._pool.submit(self.inspector.inspect_batch, asked, limit=limit)

    def _look(self) -> None:
        """Notice a new catalog, at most once a second; it is opened on a worker thread, and this call does not wait."""
        if self._watch is not None and self._watch.changed():
            self._pool.submit(self._watch.refresh)

    def _renewed(self) -> Callable[[], None]:
        """What the watch calls: a new inspector, and what puts it in the place of the old one."""
        assert self.inspector.opened is not None  # noqa: S101 (only then there is a watch)
        inspector = self.inspector.renewed(reopen(self.inspector.opened))

        def swap() -> None:
            self.inspector = inspector

        return swap

    @staticmethod
    def _wait(future: Future[Any], deadline: float) -> Any:
        try:
            return future.result(deadline)
        except FutureTimeout as error:
            future.cancel()
            raise InspectionTimeout.after(deadline) from error

    @staticmethod
    async def _await(future: Future[Any], deadline: float) -> Any:
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), deadline)
        except TimeoutError as error:
            raise InspectionTimeout.after(deadline) from error


def _reopen(opened: dict[str, Any], tokens: bool) -> CatalogSource:
    source = CatalogSource.open(**opened)
    source.tokens = tokens
    return source
