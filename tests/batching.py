"""What tests of batches share: prompts with their notes, a failure, and how long to wait."""

from __future__ import annotations

from langchain_core.messages import HumanMessage

from sae_runtime.errors import EngineError

PATIENCE = 30.0  # seconds; only a broken product waits that long
BOOM = EngineError("Broken.", "Mend it.")


def noted(text: str, *notes: str) -> HumanMessage:
    return HumanMessage(f"{text}\n\n[Note on the wording above: {' '.join(notes)}]" if notes else text)
