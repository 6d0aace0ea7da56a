"""vLLM's scheduler without drafts.

vLLM extracts hidden states as a kind of speculative decoding whose "draft" is the token that was just sampled. As a guess
of the next token it is wrong almost always, and verifying it would double the tokens of every decoding step. The hidden
states are written either way, so the drafts are left aside.
"""

from __future__ import annotations

from typing import Any

from vllm.v1.core.sched.scheduler import Scheduler


class DraftlessScheduler(Scheduler):
    """Never schedules a draft token."""

    def update_draft_token_ids(self, draft_token_ids: Any) -> None:
        """Ignore the drafts."""
