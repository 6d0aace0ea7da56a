"""Reading prompts with planted senses: one loop for calibration, for the example table and for the evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sae_runtime.detector import Inspector, MentionReading, Reading
from sae_runtime.evaluation.prompts import PlantedPrompt
from sae_runtime.progress import progress

_TOGETHER = 16


def read_planted(
    inspector: Inspector, prompts: Sequence[PlantedPrompt], title: str
) -> Iterator[tuple[PlantedPrompt, Reading, MentionReading | None]]:
    """Each prompt with its reading and the planted mention in it (None: it was not read).

    Raises:
        SensecheckError: a prompt cannot be read.
    """
    with progress(title, len(prompts)) as advance:
        for first in range(0, len(prompts), _TOGETHER):
            batch = prompts[first : first + _TOGETHER]
            asked = [
                (
                    [{"role": "user", "content": prompt.prompt}],
                    {"domain": prompt.domain, "glossary": prompt.terms, "tokens": False},
                )
                for prompt in batch
            ]
            for prompt, reading in zip(batch, inspector.inspect_batch(asked), strict=True):  # type: ignore[arg-type]
                if isinstance(reading, Exception):
                    raise reading
                planted = (m for m in reading.mentions if m.concept == prompt.slug and m.start == prompt.start)
                yield prompt, reading, next(planted, None)
                advance(1)
