"""What is read of items: each prompt once, the longest first, and each item's own spots in it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from faults.making import LAYER, make_artefacts
from tiny_models import make_model
from torch import Tensor

from sae_runtime.engines.chat import ChatEncoder
from sae_runtime.engines.transformers import TransformersEngine
from sae_runtime.evaluation.capture import LAST, Captured, captured
from sae_runtime.evaluation.items import Item
from sae_runtime.sae import load_sae

LONG = "We sat on the bank of the river, and then on the other bank."
ITEMS = [
    Item("a", "test", "g", "Which bank?", {"word": (6, 10)}, "x", ("x", "y"), "A"),
    Item("b", "test", "g", LONG, {"word": (14, 18)}, "x", ("x", "y"), "A"),
    Item("c", "test", "g", LONG, {"word": (55, 59), "before": (0, 6)}, "y", ("x", "y"), "B"),
]


class Counting(TransformersEngine):
    """Keeps the lengths of the prompts that it reads, in order."""

    def __init__(self, model: Path) -> None:
        super().__init__(model, LAYER)
        self.lengths: list[int] = []

    def residual(self, sequences: list[list[int]]) -> list[Tensor]:
        self.lengths += map(len, sequences)
        return super().residual(sequences)


class Reading:
    """The parts of a run that read."""

    def __init__(self, folder: Path) -> None:
        model = make_model(folder / "llama", "llama")
        self.engine = Counting(model)
        self._encoder, self._sae = ChatEncoder(model), load_sae(make_artefacts(folder / "artefacts", model))

    def __call__(self, items: Sequence[Item], cache: Path) -> Captured:
        self.engine.lengths.clear()
        return captured(items, self.engine, self._encoder, self._sae, "key", cache)


@pytest.fixture(scope="module")
def reading(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reading]:
    reading = Reading(tmp_path_factory.mktemp("reading"))
    yield reading
    reading.engine.close()


def test_items_with_one_prompt_share_its_reading_and_keep_their_spots(reading: Reading, tmp_path: Path) -> None:
    together = reading(ITEMS, tmp_path / "all")
    assert len(reading.engine.lengths) == 2
    assert reading.engine.lengths == sorted(reading.engine.lengths, reverse=True)
    assert set(together.spots) == {"word", "before", LAST}
    for place, item in enumerate(ITEMS):
        alone = reading([item], tmp_path / item.id)
        for spot in alone.spots:
            np.testing.assert_allclose(together.dense[spot][place], alone.dense[spot][0], rtol=0.01, atol=0.01)
            np.testing.assert_allclose(
                together.features[spot].toarray()[place], alone.features[spot].toarray()[0], rtol=0.01, atol=0.01
            )
    word = together.features["word"].toarray()
    assert not np.allclose(word[1], word[2])
    assert not together.dense["before"][:2].any()


def test_what_was_read_is_kept(reading: Reading, tmp_path: Path) -> None:
    first = reading(ITEMS, tmp_path)
    again = reading(ITEMS, tmp_path)
    assert not reading.engine.lengths
    np.testing.assert_array_equal(first.dense["word"], again.dense["word"])
