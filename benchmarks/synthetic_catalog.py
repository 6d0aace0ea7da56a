"""Catalogs and dictionaries of any size, shaped like the shipped ones and made through the real tables and store.

Per concept, as in the shipped catalog of the default model: 3 forms, 2 senses, 96 latents that both senses read, 95 cues
and a note per sense; per feature a label, a description, a predicate, a histogram, 6 examples and 2 validations. Only the
labelled contexts, which serving does not read, are fewer (4 per sense, not 20). Words are made up.

All catalogs hold the same :data:`CORE` concepts over the same :data:`CORE_FEATURES` latents, at random places among the
rest, and dictionaries encode those latents alike. So a prompt about the core must be read alike by all of them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sqlalchemy import Connection, Table, insert

from sae_runtime.catalog.store import create_catalog, seal_catalog
from sae_runtime.catalog.tables import Base
from sae_runtime.paths import CATALOG_FILE, SAE_CONFIG_FILE, SAE_WEIGHTS_FILE
from sae_runtime.progress import progress

VERSION = 1  # of what is made here; kept catalogs of another one are made anew
CORE, CORE_FEATURES = 100, 2_000
WIDTH = 896  # of the residual stream, as in the default model
LATENTS, CUES, EXAMPLES, CONTEXTS = 96, 95, 6, 4
CUE = "answer"  # a cue of every core concept's first sense; prompts contain it
_SPREAD = 4  # the full dictionary has this many times the catalogued latents
_CHUNK = 500  # concepts, or hundreds of features, per step
_THRESHOLD = 11.6  # for inputs of standard deviation 5: one token in a hundred
_SYLLABLES = [c + v for c in "bdfghjklmnprstvwz" for v in "aeiou"]


@dataclass(frozen=True)
class Size:
    """How much a catalog holds."""

    concepts: int
    features: int

    def __str__(self) -> str:
        return f"{self.concepts:,} concepts, {self.features:,} features"


def word(number: int) -> str:
    """The made-up word ``number``: three or four syllables, neighbours unlike each other."""
    base = len(_SYLLABLES)
    number, text = number * 368_111 % base**3, ""
    for _ in range(3):
        number, place = divmod(number, base)
        text += _SYLLABLES[place]
    return text


def forms(number: int) -> list[str]:
    """The forms of the concept ``number``."""
    return [word(number), word(number) + "s", word(number) + " " + word(number + 1)]


def make(size: Size, folder: Path) -> Path:
    """The folder with catalog and dictionary of ``size``, made unless ``folder`` holds it already.

    Each is made under another name and renamed when it is complete, so an interrupted run loses one of them at most.
    """
    home = folder / f"v{VERSION}-{size.concepts}-{size.features}"
    home.mkdir(parents=True, exist_ok=True)
    if not (home / CATALOG_FILE).exists():
        partial = home / f"{CATALOG_FILE}.partial"
        for leftover in home.glob(f"{CATALOG_FILE}.partial*"):
            leftover.unlink()
        _catalog(size, partial)
        partial.replace(home / CATALOG_FILE)
    if not (home / SAE_WEIGHTS_FILE).exists():
        _dictionary(size, home)
    return home


def discard(folder: Path) -> None:
    """Remove all that :func:`make` made."""
    shutil.rmtree(folder, ignore_errors=True)


def latents(size: Size) -> NDArray[np.int64]:
    """Index in the full dictionary of each catalogued latent, ascending ``[features]``."""
    rng = np.random.default_rng([VERSION, size.features])
    return np.sort(rng.choice(size.features * _SPREAD, size.features, replace=False))


def core_places(size: Size) -> NDArray[np.int64]:
    """Where the core's latents stand among the catalogued ones ``[CORE_FEATURES]``."""
    rng = np.random.default_rng([VERSION, size.features, 1])
    return rng.permutation(size.features)[:CORE_FEATURES]


def _catalog(size: Size, path: Path) -> None:
    engine = create_catalog(path)
    raw = engine.raw_connection()  # pooled: what follows runs on it
    for setting in ("synchronous = OFF", "foreign_keys = OFF", "cache_size = -200000"):
        raw.cursor().execute(f"PRAGMA {setting}")
    raw.close()
    with engine.connect() as connection, progress(f"catalog, {size}", size.features + 20 * size.concepts) as advance:
        with connection.begin():
            _owner(connection, size)
        for first in range(0, size.features, _CHUNK * 100):
            last = min(first + _CHUNK * 100, size.features)
            with connection.begin():
                _features(connection, size, first, last)
            advance(last - first, "features")
        rng = np.random.default_rng([VERSION, size.concepts, 2])
        order = rng.permutation(size.concepts)  # the core stands anywhere
        stems = [word(number) + "q" for number in range(0, 500_000, 10)]
        for first in range(0, size.concepts, _CHUNK):
            numbers = order[first : first + _CHUNK].tolist()
            with connection.begin():
                _concepts(connection, size, first + 1, numbers, stems, rng)
            advance(20 * len(numbers), "concepts")
    engine.dispose()
    seal_catalog(path)


def _add(connection: Connection, table: str, rows: Iterable[tuple[Any, ...]], *columns: str) -> None:
    """Insert tuples; the statement is the real table's."""
    real: Table = Base.metadata.tables[table]
    statement = str(insert(real).values(dict.fromkeys(columns)).compile(connection))
    order = [name for name in real.columns.keys() if name in columns]  # noqa: SIM118 (a collection, not a dict)
    assert order == list(columns), f"columns of {table} stand in the order {order}"
    cursor = connection.connection.cursor()
    cursor.executemany(statement, rows)
    cursor.close()


def _owner(connection: Connection, size: Size) -> None:
    tables = Base.metadata.tables
    connection.execute(
        insert(tables["models"]).values(
            id=1, name="synthetic", weights="w", config="c", tokenizer="t", chat_template="h"
        )
    )
    connection.execute(insert(tables["saes"]).values(
        id=1, model_id=1, layer=8, hook_name="blocks.8.hook_resid_post", architecture="jumprelu", d_in=WIDTH,
        d_sae=size.features, fingerprint="synthetic",
    ))  # fmt: skip
    connection.execute(insert(tables["builds"]).values(
        id=1, sae_id=1, created_at=datetime(2025, 1, 1), config={}, data={}, versions={}, figures={},
    ))  # fmt: skip


def _features(connection: Connection, size: Size, first: int, last: int) -> None:
    index = latents(size)[first:last].tolist()
    rng = np.random.default_rng([VERSION, first, 3])
    words = rng.integers(0, 500_000, (last - first, 12))
    edges = [round(number * 0.1114, 4) for number in range(21)]
    counts = rng.integers(0, 400, (last - first, 20)).tolist()

    def rows() -> Iterator[tuple[Any, ...]]:
        for place, row in enumerate(words.tolist()):
            some = [word(number) for number in row]
            label = ", ".join(some[:4])
            predicate = json.dumps({"family": "word", "words": some * 2})
            histogram = json.dumps({"edges": edges, "counts": counts[place]})
            yield (
                first + place + 1, 1, index[place], label, place % 20 == 0, f"Fires on “{label}” and after {some[5]} in lists.",
                predicate, json.dumps(some[6:11]), 0.001, 2.23, histogram,
            )  # fmt: skip

    _add(connection, "features", rows(), "id", "sae_id", "index", "label", "validated", "description", "predicate",
         "promoted", "density", "max_activation", "histogram")  # fmt: skip
    texts = [" ".join(word(n) for n in row) for row in rng.integers(0, 500_000, (5_000, 13)).tolist()]
    picks = rng.integers(0, len(texts), (last - first, EXAMPLES)).tolist()
    _add(
        connection,
        "feature_examples",
        (
            (feature, f"{feature} {texts[pick]}", 0, 6, 2.0 - 0.1 * rank)
            for feature, row in enumerate(picks, first + 1)
            for rank, pick in enumerate(row)
        ),
        "feature_id", "text", "start", "end", "activation",
    )  # fmt: skip
    _add(
        connection,
        "feature_validations",
        (
            (feature, "description", split, 100, 20, 0.7, 0.5, 0.8, 0.2, 0.6)
            for feature in range(first + 1, last + 1)
            for split in ("validation", "test")
        ),
        "feature_id", "method", "split", "samples", "predicted", "precision", "precision_low", "precision_high", "recall",
        "balanced_accuracy",
    )  # fmt: skip


def _concepts(
    connection: Connection, size: Size, first: int, numbers: list[int], stems: list[str], rng: np.random.Generator
) -> None:
    """The concepts ``numbers`` under ids from ``first`` on; the senses of concept ``id`` are ``2 id - 1`` and ``2 id``."""
    ids = range(first, first + len(numbers))
    _add(
        connection,
        "concepts",
        (
            (id_, word(number), "synthetic", json.dumps(forms(number)), "after", 0.95, None, 0.2, 0.8)
            for id_, number in zip(ids, numbers, strict=True)
        ),
        "id", "slug", "pack", "forms", "site", "accuracy", "text_accuracy", "read_below", "intended_above",
    )  # fmt: skip
    senses = [
        (2 * id_ - 1 + which, id_, number, which) for id_, number in zip(ids, numbers, strict=True) for which in (0, 1)
    ]
    _add(connection, "senses", ((s, id_, f"sense{which}", f"{word(n)} in the meaning {which}", "[]") for s, id_, n, which in senses),
         "id", "concept_id", "slug", "gloss", "domains")  # fmt: skip
    _add(connection, "signatures", ((s, s, 4.0 * which) for s, _, _, which in senses), "id", "sense_id", "bias")
    _add(connection, "notes", ((s, f'Here "{{mention}}" means the one thing, not {which}.', "pack", 0, True) for s, _, _, which in senses),
         "sense_id", "text", "wording", "trials", "enabled")  # fmt: skip
    _add(connection, "sense_contexts",
         ((s, f"A sentence {k} about the {word(n)} of somebody.", 21, 27, k == 0) for s, _, n, _ in senses for k in range(CONTEXTS)),
         "sense_id", "text", "start", "end", "held_out")  # fmt: skip
    _add(connection, "signature_weights", _weights(size, senses, rng), "signature_id", "feature_id", "weight")
    _add(connection, "cues", _cues(senses, stems, rng), "sense_id", "stem", "weight")


def _weights(
    size: Size, senses: list[tuple[int, int, int, int]], rng: np.random.Generator
) -> Iterator[tuple[int, int, float]]:
    core = core_places(size)
    for sense, _, number, which in senses:
        if which == 0:  # both senses read the same latents
            if number < CORE:
                own = np.random.default_rng([VERSION, number, 4])
                places = core[own.choice(CORE_FEATURES, LATENTS, replace=False)]
                weights = own.normal(0, 0.1, (2, LATENTS))
            else:
                places = np.unique(rng.integers(0, size.features, LATENTS))
                weights = rng.normal(0, 0.1, (2, len(places)))
            order = np.argsort(places)
            features = (places[order] + 1).tolist()
        yield from zip([sense] * len(features), features, weights[which][order].tolist(), strict=True)


def _cues(
    senses: list[tuple[int, int, int, int]], stems: list[str], rng: np.random.Generator
) -> Iterator[tuple[int, str, float]]:
    for sense, _, number, which in senses:
        source = np.random.default_rng([VERSION, number, which, 5]) if number < CORE else rng
        picked = np.unique(source.integers(0, len(stems), CUES - 1)).tolist()
        own = [CUE] * (number < CORE and which == 0)
        for stem in sorted([stems[place] for place in picked] + own):
            yield sense, stem, 6.0 if stem == CUE else 1.0


def _dictionary(size: Size, home: Path) -> None:
    """A JumpReLU SAE in bfloat16. Written in pieces: with a million latents each of its two matrices has 1.8 GB."""
    core = core_places(size)
    shared = _rows(np.random.default_rng([VERSION, 6]), CORE_FEATURES)
    small = {"b_dec": torch.zeros(WIDTH), "b_enc": torch.zeros(size.features)}
    small["threshold"] = torch.full((size.features,), _THRESHOLD)
    names = {"W_dec": (size.features, WIDTH), "W_enc": (WIDTH, size.features)}
    header, at = {}, 0
    for name, shape in [*names.items(), *((name, tuple(tensor.shape)) for name, tensor in small.items())]:
        end = at + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, end]}
        at = end
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    partial = home / f"{SAE_WEIGHTS_FILE}.partial"
    with partial.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        file.truncate(8 + len(encoded) + at)
    start = 8 + len(encoded)
    decoder = np.memmap(partial, np.int16, "r+", start, names["W_dec"])
    encoder = np.memmap(partial, np.int16, "r+", start + decoder.nbytes, names["W_enc"])
    block = 65_536
    with progress(f"dictionary, {size}", size.features) as advance:
        for first in range(0, size.features, block):
            last = min(first + block, size.features)
            rows = _rows(np.random.default_rng([VERSION, first, 7]), last - first)
            here = np.flatnonzero((core >= first) & (core < last))
            rows[core[here] - first] = shared[here]
            decoder[first:last] = rows
            encoder[:, first:last] = rows.T
            advance(last - first)
    decoder.flush()
    encoder.flush()
    with partial.open("r+b") as file:
        file.seek(start + decoder.nbytes + encoder.nbytes)
        for tensor in small.values():
            file.write(tensor.bfloat16().view(torch.int16).numpy().tobytes())
    config = {
        "architecture": "jumprelu", "d_in": WIDTH, "d_sae": size.features, "dtype": "bfloat16", "device": "cpu",
        "apply_b_dec_to_input": True, "normalize_activations": "none", "reshape_activations": "none",
        "metadata": {"sae_lens_version": "6.0.0", "sensecheck_latents": latents(size).tolist(),
                     "sensecheck_full_d_sae": size.features * _SPREAD},
    }  # fmt: skip
    (home / SAE_CONFIG_FILE).write_text(json.dumps(config), "utf-8")
    partial.replace(home / SAE_WEIGHTS_FILE)


def _rows(rng: np.random.Generator, count: int) -> NDArray[np.int16]:
    """``count`` random directions of norm one, as the bits of bfloat16 ``[count, WIDTH]``."""
    rows = torch.from_numpy(rng.standard_normal((count, WIDTH), dtype=np.float32))
    rows /= rows.norm(dim=1, keepdim=True)
    return rows.bfloat16().view(torch.int16).numpy()
