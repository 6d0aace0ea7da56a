"""What can be said about a token without looking into the model: its word, the words before it, place, kind of text.

Descriptions of latents are predicates over these properties, so that a machine can check them on any text.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import snowballstemmer
import torch
from numpy.typing import NDArray

PLACES = ("among the first 4 tokens", "among the first 16 tokens", "among the first 64 tokens", "late in the text")
_PLACE_EDGES = (4, 16, 64)
WINDOW = 12  # tokens before the current one that count as its surroundings
Ints = NDArray[np.int32]


class Words:
    """Tokens by the word they stand for: case, leading space and inflection do not count.

    Args:
        tokenizer: a transformers tokenizer.

    Attributes:
        of_token: int32 ``[vocabulary]``, word number of each token.
        names: readable name of each word.
        token: token that stands for each word in text made up: after a space and in lower case, if there is one.
    """

    def __init__(self, tokenizer: Any) -> None:
        stem = snowballstemmer.stemmer("english").stemWord
        numbers: dict[str, int] = {}
        self.names: list[str] = []
        self.token: list[int] = []
        of_token = []
        for token in range(len(tokenizer)):
            text = tokenizer.decode([token])
            word = text.strip().lower()
            key = stem(word) if word.isalpha() else word or repr(text)
            if word.isalpha() and text[0] != " " and text == word:
                key, word = "-" + key, "-" + word  # the middle or end of a word
            if key not in numbers:
                numbers[key] = len(numbers)
                self.names.append(word or ("line break" if "\n" in text else "white space"))
                self.token.append(token)
            elif text == " " + self.names[numbers[key]]:
                self.token[numbers[key]] = token
            of_token.append(numbers[key])
        self.of_token = np.array(of_token, dtype=np.int32)

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class TokenTable:
    """Properties of the rows of one split.

    Attributes:
        words: the vocabulary.
        word: int32 ``[rows]``, word number.
        before: int32 ``[rows, WINDOW]``, word numbers of the tokens before, nearest first; -1 before the beginning.
        place: int32 ``[rows]``, index in :data:`PLACES`.
        source: int32 ``[rows]``, number of the text source.
        sequence, position: int32 ``[rows]``, where the row comes from.
    """

    words: Words
    word: Ints
    before: Ints
    place: Ints
    source: Ints
    sequence: Ints
    position: Ints

    @classmethod
    def of(
        cls, words: Words, data: dict[str, torch.Tensor], sequences: list[list[int]], sources: Iterable[int]
    ) -> TokenTable:
        """Properties of harvested rows ``data`` (``sequence`` and ``position`` per row) of these sequences.

        Args:
            words: the vocabulary.
            data: one split of the harvest.
            sequences: that split's token sequences.
            sources: source number of each sequence.
        """
        sequence, position = data["sequence"].numpy(), data["position"].numpy()
        lengths = np.array([len(ids) for ids in sequences])
        flat = words.of_token[np.concatenate([np.array(ids) for ids in sequences])]
        start = np.concatenate([[0], lengths.cumsum()[:-1]])[sequence]
        steps = position[:, None] - np.arange(1, WINDOW + 1)
        before = np.where(steps >= 0, flat[start[:, None] + np.maximum(steps, 0)], -1)
        return cls(
            words=words,
            word=flat[start + position],
            before=before.astype(np.int32),
            place=np.digitize(position, _PLACE_EDGES).astype(np.int32),
            source=np.array(list(sources), dtype=np.int32)[sequence],
            sequence=sequence,
            position=position,
        )

    def __len__(self) -> int:
        return len(self.word)

    def rows(self, at: NDArray[Any]) -> TokenTable:
        """The table of some rows alone (indices or a mask)."""
        parts = {
            name: getattr(self, name)[at] for name in ("word", "before", "place", "source", "sequence", "position")
        }
        return TokenTable(words=self.words, **parts)

    @cached_property
    def pair(self) -> NDArray[np.int64]:
        """One number per (word before, word), ``[rows]``."""
        return (self.before[:, 0].astype(np.int64) + 1) * len(self.words) + self.word
