"""An agent and a graph on the real served model: the note reaches the model, and never the state."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any, TypedDict

import httpx
import pytest
from langchain.agents import create_agent
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AnyMessage, BaseMessage, HumanMessage
from langchain_openai import ChatOpenAI
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, StateGraph
from langgraph.graph.message import add_messages

from middleware import SAEAnnotator
from middleware.agents import SensecheckMiddleware
from sae_runtime.detector import Inspector
from sae_runtime.evaluation.prompts import calibration_prompts
from sae_runtime.serving import ModelServer

pytestmark = pytest.mark.server


class Sent(BaseCallbackHandler):
    """What the chat model was sent."""

    def __init__(self) -> None:
        self.prompts: list[list[BaseMessage]] = []

    def on_chat_model_start(self, serialized: Any, messages: list[list[BaseMessage]], **kwargs: Any) -> None:
        self.prompts += messages


@pytest.fixture(scope="module")
def flagged(inspector: Inspector) -> tuple[str, str | None]:
    """A prompt that the small model misreads, and its domain."""
    for prompt in calibration_prompts():
        if inspector.inspect([{"role": "user", "content": prompt.prompt}], domain=prompt.domain).misreads:
            return prompt.prompt, prompt.domain
    raise AssertionError("nothing is flagged")


@pytest.fixture
async def model(server: ModelServer) -> AsyncIterator[ChatOpenAI]:
    # A client of its own: langchain-openai would share one with tests whose event loop is closed.
    async with httpx.AsyncClient() as client:
        yield ChatOpenAI(
            base_url=f"{server.url}/v1",
            api_key="none",
            model=server.model,
            temperature=0,
            max_completion_tokens=16,
            http_async_client=client,
        )


@pytest.fixture
def annotator(server: ModelServer) -> SAEAnnotator:
    return SAEAnnotator.from_url(server.url, deadline=60, grace=None, on_error="raise")


async def test_an_agent_is_sent_the_note_and_keeps_the_conversation(
    model: ChatOpenAI, annotator: SAEAnnotator, flagged: tuple[str, str | None]
) -> None:
    text, domain = flagged
    agent = create_agent(model, middleware=[SensecheckMiddleware(annotator)], checkpointer=InMemorySaver())
    sent = Sent()
    config: Any = {
        "configurable": {"thread_id": "1", "sensecheck_domain": domain}, "callbacks": [sent],
    }  # fmt: skip
    first = await agent.ainvoke({"messages": [HumanMessage(text)]}, config)
    second = await agent.ainvoke({"messages": [HumanMessage("Thank you.")]}, config)
    assert [prompt[-1].text.startswith(text + "\n\n[Note") for prompt in sent.prompts] == [True, False]
    assert first["messages"][0].text == text
    assert second["messages"][0].text == text
    assert all("[Note" not in message.text for message in second["messages"] if message.type == "human")
    assert first["messages"][-1].text.strip()


class State(TypedDict):
    """A conversation."""

    messages: Annotated[list[AnyMessage], add_messages]


def test_a_graph_uses_a_chain_with_the_annotator(
    model: ChatOpenAI, annotator: SAEAnnotator, flagged: tuple[str, str | None]
) -> None:
    text, domain = flagged
    chain = annotator | model
    builder = StateGraph(State)
    builder.add_node("answer", lambda state, config: {"messages": [chain.invoke(state, config)]})
    builder.add_edge(START, "answer")
    graph = builder.compile()
    sent = Sent()
    config: Any = {"configurable": {"sensecheck_domain": domain}, "callbacks": [sent]}
    state = graph.invoke({"messages": [HumanMessage(text)]}, config)
    assert sent.prompts[0][-1].text.startswith(text + "\n\n[Note")
    assert [message.type for message in state["messages"]] == ["human", "ai"]
    assert state["messages"][0].text == text
