"""Reading prompts with planted senses: one loop for calibration and for the example table."""

from __future__ import annotations

from collections.abc import Iterator

from sae_runtime.detector import Inspector, MentionReading, Reading
from sae_runtime.evaluation.prompts import PlantedPrompt
from sae_runtime.progress import progress


def read_planted(
    inspector: Inspector, prompts: list[PlantedPrompt], title: str
) -> Iterator[tuple[PlantedPrompt, Reading, MentionReading | None]]:
    """Each prompt with its reading and the planted mention in it (None: it was not read)."""
    with progress(title, len(prompts)) as advance:
        for prompt in prompts:
            reading = inspector.inspect([{"role": "user", "content": prompt.prompt}], domain=prompt.domain)
            planted = (m for m in reading.mentions if m.concept == prompt.concept and m.start == prompt.start)
            yield prompt, reading, next(planted, None)
            advance(1)
