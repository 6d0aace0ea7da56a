"""A chain that answers whatever becomes of its readings: it is asked, and what its model was sent is compared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from faulty_server import PATIENCE
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import BaseMessage, HumanMessage

from middleware import SAEAnnotator, Stats

Call = Callable[..., Any]

TEXT = "On the bank I sat."
NOTED = f"{TEXT}\n\n[Note on the wording above: A note.]"


class Recorder(BaseCallbackHandler):
    """Keeps what the model was sent."""

    def __init__(self) -> None:
        self.sent: list[list[BaseMessage]] = []

    def on_chat_model_start(self, serialized: Any, messages: list[list[BaseMessage]], **kwargs: Any) -> None:
        self.sent.extend(messages)


def annotated_by(source: Any, deadline: float = PATIENCE) -> SAEAnnotator:
    return SAEAnnotator(source=source, deadline=deadline, grace=None)


def chain_of(annotator: SAEAnnotator) -> Any:
    return annotator | FakeListChatModel(responses=["Wet feet."])


def ask(call: Call, annotator: SAEAnnotator) -> list[BaseMessage]:
    """What the model of a chain was sent; it answers in any case."""
    recorder = Recorder()
    answer = call(chain_of(annotator), "invoke", [HumanMessage(TEXT)], config={"callbacks": [recorder]})
    assert answer.content == "Wet feet."
    (sent,) = recorder.sent
    return sent


def passes(call: Call, annotator: SAEAnnotator, reason: str) -> None:
    """The model is sent the untouched prompt, and answers; the statistics name the reason, and nothing else."""
    assert ask(call, annotator) == [HumanMessage(TEXT)]
    assert annotator.stats == Stats(inspected=0, flagged=0, bypassed=Counter({reason: 1}))


def heals(call: Call, source: Any) -> None:
    """The same source annotates again."""
    annotator = annotated_by(source)
    assert ask(call, annotator) == [HumanMessage(NOTED)]
    assert annotator.stats == Stats(inspected=1, flagged=1)
