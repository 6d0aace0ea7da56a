"""Readings in agents: LangChain's ``create_agent`` with the middleware, and a graph made by hand. Everything is scripted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any
from uuid import UUID

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware, ModelRequest, ModelResponse, SummarizationMiddleware
from langchain.agents.structured_output import ToolStrategy
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableLambda
from langchain_core.tools import tool
from langchain_core.utils.function_calling import convert_to_openai_tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph
from pydantic import BaseModel, Field

from middleware import SAEAnnotator
from middleware.agents import SensecheckMiddleware
from middleware.chat_model import AnnotatedChatModel
from middleware.testing import FakeInspector
from sae_runtime.errors import EngineError

Call = Callable[..., Any]

TEXT = "Who owns the bank?"
NOTE = "[Note on the wording above: River.]"
NOTED = f"{TEXT}\n\n{NOTE}"
SYSTEM_NOTE = "[Note on the wording of the user's message: River.]"


class Invoice(BaseModel):
    """An invoice."""

    total: int


class Script(BaseChatModel):
    """Answers from a list, and keeps what it is sent and with which tools."""

    answers: list[AIMessage]
    sent: list[list[BaseMessage]] = Field(default_factory=list)
    options: list[dict[str, Any]] = Field(default_factory=list)

    @property
    def _llm_type(self) -> str:
        return "script"

    def _generate(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        answer = self.answers[len(self.sent)]
        self.sent.append(list(messages))
        self.options.append(kwargs)
        return ChatResult(generations=[ChatGeneration(message=answer.model_copy())])

    def bind_tools(self, tools: Sequence[Any], *, tool_choice: Any = None, **kwargs: Any) -> Runnable[Any, Any]:
        return self.bind(tools=[convert_to_openai_tool(one)["function"]["name"] for one in tools], **kwargs)


class Piecewise(Script):
    """Gives its answers word by word."""

    def _stream(self, *args: Any, **kwargs: Any) -> Any:
        for word in str(self._generate(*args, **kwargs).generations[0].message.content).split(" "):
            yield ChatGenerationChunk(message=AIMessageChunk(word))


class Events(BaseCallbackHandler):
    """Keeps the readings that are told of."""

    def __init__(self) -> None:
        self.data: list[dict[str, Any]] = []

    def on_custom_event(self, name: str, data: Any, *, run_id: UUID, **kwargs: Any) -> None:
        if name == "sensecheck.reading":
            self.data.append(data)


def calls_for(*places: str, start: int = 0) -> AIMessage:
    """The model's wish to look places up."""
    calls = [{"name": "lookup", "args": {"place": place}, "id": f"c{start + i}"} for i, place in enumerate(places)]
    return AIMessage("", tool_calls=calls)


def texts(messages: Sequence[BaseMessage]) -> list[tuple[str, str]]:
    return [(message.type, str(message.content)) for message in messages]


def turn(text: str = TEXT) -> dict[str, Any]:
    return {"messages": [HumanMessage(text)]}


@pytest.fixture
def asked() -> list[str]:
    """What the tool was asked."""
    return []


@pytest.fixture
def lookup(asked: list[str]) -> Any:
    @tool
    def lookup(place: str) -> str:
        """Look a place up."""
        asked.append(place)
        return f"{place}: nobody."

    return lookup


# create_agent with the middleware


def test_the_note_reaches_the_model_and_not_the_state(annotator: SAEAnnotator, call: Call) -> None:
    model = Script(answers=[AIMessage("Nobody.")])
    agent = create_agent(model, middleware=[SensecheckMiddleware(annotator)])
    state = call(agent, "invoke", turn())
    assert texts(model.sent[0]) == [("human", NOTED)]
    assert texts(state["messages"]) == [("human", TEXT), ("ai", "Nobody.")]


def test_the_state_is_that_of_an_agent_without_it_over_several_turns(
    annotator: SAEAnnotator, call: Call, lookup: Any
) -> None:
    script = [calls_for("the bank"), AIMessage("A."), AIMessage("B."), calls_for("a bank", start=7), AIMessage("C.")]
    turns = [TEXT, "And the shore?", "So the bank again?"]
    plain, noted = Script(answers=script), Script(answers=script)
    states = []
    for model, middleware in ((plain, []), (noted, [SensecheckMiddleware(annotator)])):
        saver = InMemorySaver()
        agent = create_agent(model, [lookup], middleware=middleware, system_prompt="Be brief.", checkpointer=saver)
        config = {"configurable": {"thread_id": "1"}}
        for text in turns:
            call(agent, "invoke", turn(text), config)
        states.append([texts(saved.values["messages"]) for saved in agent.get_state_history(config) if saved.values])
    assert states[0] == states[1]  # every checkpoint, not only the last
    assert len(states[0][0]) == 10
    assert len(plain.sent) == len(noted.sent) == 5
    assert "River." not in str(plain.sent)
    found = [[str(message.content) for message in messages if NOTE in str(message.content)] for messages in noted.sent]
    again = f"{turns[2]}\n\n{NOTE}"
    assert found == [[NOTED], [NOTED], [], [again], [again]]  # the notes of earlier turns are gone


def test_several_model_calls_of_a_turn_all_have_the_note(
    annotator: SAEAnnotator, fake: FakeInspector, call: Call, lookup: Any, asked: list[str]
) -> None:
    model = Script(answers=[calls_for("the bank", "a bank"), calls_for("no bank", start=2), AIMessage("Nobody.")])
    agent = create_agent(model, [lookup], middleware=[SensecheckMiddleware(annotator)])
    state = call(agent, "invoke", turn())
    assert [texts(messages)[0] for messages in model.sent] == [("human", NOTED)] * 3
    assert [len(messages) for messages in model.sent] == [1, 4, 6]
    assert [request.read for request in fake.requests] == [[0]] * 3
    assert sorted(asked[:2]) == ["a bank", "the bank"]  # run side by side
    assert asked[2] == "no bank"
    answers = [message.content for message in state["messages"] if isinstance(message, ToolMessage)]
    assert answers == ["the bank: nobody.", "a bank: nobody.", "no bank: nobody."]
    assert state["messages"][-1].content == "Nobody."


@pytest.mark.parametrize(
    ("prompt", "head"), [(None, SYSTEM_NOTE), ("Be brief.", f"Be brief.\n\n{SYSTEM_NOTE}")], ids=["without", "with"]
)
def test_notes_in_the_system_message(
    fake: FakeInspector, call: Call, lookup: Any, prompt: str | None, head: str
) -> None:
    model = Script(answers=[calls_for("x"), AIMessage("Nobody.")])
    middleware = SensecheckMiddleware(SAEAnnotator(source=fake, placement="system"))
    state = call(create_agent(model, [lookup], middleware=[middleware], system_prompt=prompt), "invoke", turn())
    assert [texts(messages)[:2] for messages in model.sent] == [[("system", head), ("human", TEXT)]] * 2
    assert [message.type for message in state["messages"]] == ["human", "ai", "tool", "ai"]


def test_the_system_prompt_is_read_along_and_stays_first(annotator: SAEAnnotator, call: Call) -> None:
    model = Script(answers=[AIMessage("Nobody.")])
    middleware = [SensecheckMiddleware(annotator)]
    call(create_agent(model, middleware=middleware, system_prompt="About a bank."), "invoke", turn())
    assert texts(model.sent[0]) == [("system", "About a bank."), ("human", NOTED)]
    request = annotator.source.requests[0]
    assert ([message["role"] for message in request.messages], request.read) == (["system", "user"], [1])


def test_the_response_format_of_an_agent_works(annotator: SAEAnnotator, call: Call) -> None:
    wish = AIMessage("", tool_calls=[{"name": "Invoice", "args": {"total": 3}, "id": "1"}])
    model = Script(answers=[wish])
    agent = create_agent(model, middleware=[SensecheckMiddleware(annotator)], response_format=ToolStrategy(Invoice))
    state = call(agent, "invoke", turn())
    assert state["structured_response"] == Invoice(total=3)
    assert texts(model.sent[0]) == [("human", NOTED)]
    assert model.options[0] == {"tools": ["Invoice"]}
    assert NOTE not in str(state["messages"])


@pytest.mark.parametrize("first", [True, False], ids=["sensecheck first", "summary first"])
def test_a_summary_is_made_of_the_conversation_without_notes(annotator: SAEAnnotator, call: Call, first: bool) -> None:
    model = Script(answers=[AIMessage("One."), AIMessage("Two."), AIMessage("Three.")])
    writer = Script(answers=[AIMessage("They spoke of money.")])
    ours, theirs = (
        SensecheckMiddleware(annotator),
        SummarizationMiddleware(writer, trigger=("messages", 5), keep=("messages", 1)),
    )
    agent = create_agent(model, middleware=[ours, theirs] if first else [theirs, ours], checkpointer=InMemorySaver())
    config = {"configurable": {"thread_id": "1"}}
    for text in (TEXT, "Which bank?", "My bank?"):
        state = call(agent, "invoke", turn(text), config)
    assert len(writer.sent) == 1
    assert TEXT in str(writer.sent[0])
    assert "River." not in str(writer.sent[0])
    summary, question = model.sent[2]
    assert "They spoke of money." in str(summary.content)
    assert question.content == f"My bank?\n\n{NOTE}"
    assert [message.type for message in state["messages"]] == ["human", "human", "ai"]
    assert "River." not in str(state["messages"])


def test_the_settings_of_the_agents_call_reach_the_reading(
    annotator: SAEAnnotator, fake: FakeInspector, call: Call, lookup: Any
) -> None:
    model = Script(answers=[calls_for("x"), AIMessage("A."), AIMessage("B.")])
    agent = create_agent(model, [lookup], middleware=[SensecheckMiddleware(annotator)], checkpointer=InMemorySaver())
    settings = {"sensecheck_domain": "finance", "sensecheck_without": ["bank"]}
    call(agent, "invoke", turn(), {"configurable": {"thread_id": "1", **settings}})
    call(agent, "invoke", turn(), {"configurable": {"thread_id": "1"}})
    assert [request.domain for request in fake.requests] == ["finance", "finance", None]
    assert [NOTE in str(messages) for messages in model.sent] == [False, False, True]


class Spy(AgentMiddleware):
    """Keeps the request on one side of the middleware under test."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[ModelRequest] = []

    def wrap_model_call(self, request: ModelRequest, handler: Callable[[ModelRequest], Any]) -> Any:
        self.requests.append(request)
        return handler(request)

    async def awrap_model_call(self, request: ModelRequest, handler: Callable[[ModelRequest], Any]) -> Any:
        self.requests.append(request)
        return await handler(request)


class Inner(Spy):
    """The same under another name; an agent takes each name once."""


@pytest.mark.parametrize(("text", "same"), [("The shore.", True), (TEXT, False)], ids=["clear", "flagged"])
@pytest.mark.parametrize("prompt", [None, "Be brief."])
def test_a_clear_prompt_passes_as_the_very_same_request(
    annotator: SAEAnnotator, call: Call, text: str, same: bool, prompt: str | None
) -> None:
    outer, inner = Spy(), Inner()
    model = Script(answers=[AIMessage("A.")])
    middleware = [outer, SensecheckMiddleware(annotator), inner]
    call(create_agent(model, middleware=middleware, system_prompt=prompt), "invoke", turn(text))
    (before,), (after,) = outer.requests, inner.requests
    assert (before is after) is same
    assert texts(before.messages) == [("human", text)]
    assert before.state is after.state
    assert before.system_message is after.system_message


def test_an_observer_passes_the_very_same_request(fake: FakeInspector, call: Call) -> None:
    seen: list[ModelRequest] = []
    middleware = SensecheckMiddleware(SAEAnnotator(source=fake, observe=True))
    request = ModelRequest(model=Script(answers=[]), messages=[HumanMessage(TEXT)])
    answer = ModelResponse(result=[AIMessage("A.")])

    def handler(given: ModelRequest) -> ModelResponse:
        seen.append(given)
        return answer

    async def ahandler(given: ModelRequest) -> ModelResponse:
        return handler(given)

    assert middleware.wrap_model_call(request, handler) is answer
    assert asyncio.run(middleware.awrap_model_call(request, ahandler)) is answer
    assert seen[0] is seen[1] is request
    assert middleware.annotator.stats.flagged == 2


def test_a_failed_reading_lets_the_agent_go_on(call: Call, lookup: Any) -> None:
    annotator = SAEAnnotator(source=FakeInspector({"bank": "River."}, outcomes=[EngineError("broken")]))
    model = Script(answers=[calls_for("x"), AIMessage("Nobody.")])
    state = call(create_agent(model, [lookup], middleware=[SensecheckMiddleware(annotator)]), "invoke", turn())
    assert state["messages"][-1].content == "Nobody."
    assert [texts(messages)[0] for messages in model.sent] == [("human", TEXT), ("human", NOTED)]
    assert annotator.stats.bypassed == {"EngineError": 1}


def test_a_failed_reading_is_raised_when_that_is_wanted(call: Call) -> None:
    annotator = SAEAnnotator(source=FakeInspector(then=EngineError("broken")), on_error="raise")
    model = Script(answers=[AIMessage("Nobody.")])
    with pytest.raises(EngineError, match="broken"):
        call(create_agent(model, middleware=[SensecheckMiddleware(annotator)]), "invoke", turn())
    assert model.sent == []


def test_the_event_of_each_reading_reaches_the_callbacks_of_the_agent(
    annotator: SAEAnnotator, call: Call, lookup: Any
) -> None:
    model = Script(answers=[calls_for("x"), AIMessage("Nobody.")])
    events = Events()
    agent = create_agent(model, [lookup], middleware=[SensecheckMiddleware(annotator)])
    call(agent, "invoke", turn(), {"callbacks": [events]})
    assert [[flag["text"] for flag in data["flags"]] for data in events.data] == [["bank"], ["bank"]]
    assert [data["annotated"] for data in events.data] == [True, True]


def test_an_agent_streams_the_models_pieces(annotator: SAEAnnotator) -> None:
    model = Piecewise(answers=[AIMessage("Nobody owns it.")])
    agent = create_agent(model, middleware=[SensecheckMiddleware(annotator)])
    pieces = [piece.content for piece, _ in agent.stream(turn(), stream_mode="messages")]
    assert pieces[:3] == ["Nobody", "owns", "it."]
    assert texts(model.sent[0]) == [("human", NOTED)]


async def test_an_agent_streams_asynchronously(annotator: SAEAnnotator) -> None:
    model = Piecewise(answers=[AIMessage("Nobody owns it.")])
    agent = create_agent(model, middleware=[SensecheckMiddleware(annotator)])
    pieces = [piece.content async for piece, _ in agent.astream(turn(), stream_mode="messages")]
    assert pieces[:3] == ["Nobody", "owns", "it."]
    assert texts(model.sent[0]) == [("human", NOTED)]


async def test_agents_that_run_side_by_side_keep_their_settings(annotator: SAEAnnotator, fake: FakeInspector) -> None:
    agent = create_agent(Script(answers=[AIMessage("A.")] * 4), middleware=[SensecheckMiddleware(annotator)])
    configs = [{"configurable": {"sensecheck_domain": f"d{number}"}} for number in range(4)]
    await asyncio.gather(*(agent.ainvoke(turn(str(i)), config) for i, config in enumerate(configs)))
    found = {request.messages[0]["content"]: request.domain for request in fake.requests}
    assert found == {str(number): f"d{number}" for number in range(4)}


def test_content_blocks_are_noted_in_a_block(annotator: SAEAnnotator, call: Call) -> None:
    model = Script(answers=[AIMessage("Nobody.")])
    agent = create_agent(model, middleware=[SensecheckMiddleware(annotator)])
    message = HumanMessage([{"type": "text", "text": TEXT}])
    state = call(agent, "invoke", {"messages": [message]})
    assert model.sent[0][0].content == [{"type": "text", "text": NOTED}]
    assert state["messages"][0].content == [{"type": "text", "text": TEXT}]


# The annotated chat model as an agent's model


def test_an_agent_takes_the_annotated_model(annotator: SAEAnnotator, call: Call, lookup: Any, asked: list[str]) -> None:
    inner = Script(answers=[calls_for("the bank"), AIMessage("Nobody.")])
    state = call(create_agent(AnnotatedChatModel(model=inner, annotator=annotator), [lookup]), "invoke", turn())
    assert [texts(messages)[0] for messages in inner.sent] == [("human", NOTED)] * 2
    assert asked == ["the bank"]
    assert "River." not in str(state["messages"])
    assert inner.options == [{"tools": ["lookup"]}] * 2


def test_an_agent_finds_a_response_format_for_the_annotated_model(annotator: SAEAnnotator, call: Call) -> None:
    wish = AIMessage("", tool_calls=[{"name": "Invoice", "args": {"total": 3}, "id": "1"}])
    model = AnnotatedChatModel(model=Script(answers=[wish]), annotator=annotator)
    state = call(create_agent(model, response_format=Invoice), "invoke", turn())
    assert state["structured_response"] == Invoice(total=3)
    assert texts(model.model.sent[0]) == [("human", NOTED)]


# A graph made by hand


@pytest.mark.parametrize("chain_is_given_the_state", [True, False], ids=["state", "messages"])
def test_a_node_of_a_graph_uses_a_chain_with_the_annotator(
    annotator: SAEAnnotator, fake: FakeInspector, call: Call, chain_is_given_the_state: bool
) -> None:
    model = Script(answers=[AIMessage("Nobody."), AIMessage("You.")])
    chain = annotator | model

    def given(state: MessagesState) -> Any:
        return state if chain_is_given_the_state else state["messages"]

    def ask(state: MessagesState) -> dict[str, Any]:
        return {"messages": [chain.invoke(given(state))]}

    async def aask(state: MessagesState) -> dict[str, Any]:
        return {"messages": [await chain.ainvoke(given(state))]}

    graph = StateGraph(MessagesState)
    graph.add_node("ask", RunnableLambda(ask, aask))
    graph.add_edge(START, "ask")
    graph.add_edge("ask", END)
    app = graph.compile(checkpointer=InMemorySaver())
    events = Events()
    config = {"configurable": {"thread_id": "1", "sensecheck_domain": "rivers"}, "callbacks": [events]}
    call(app, "invoke", turn(), config)
    state = call(app, "invoke", turn("And the shore?"), config)
    assert texts(state["messages"]) == [("human", TEXT), ("ai", "Nobody."), ("human", "And the shore?"), ("ai", "You.")]
    assert [texts(messages) for messages in model.sent] == [[("human", NOTED)], texts(state["messages"])[:3]]
    assert [request.domain for request in fake.requests] == ["rivers", "rivers"]
    assert [len(data["flags"]) for data in events.data] == [1, 0]


def test_a_node_of_a_graph_uses_the_annotated_model(annotator: SAEAnnotator, fake: FakeInspector, call: Call) -> None:
    inner = Script(answers=[AIMessage("Nobody.")])
    model = AnnotatedChatModel(model=inner, annotator=annotator)
    graph = StateGraph(MessagesState)
    graph.add_node("ask", (lambda state: state["messages"]) | model | (lambda answer: {"messages": [answer]}))
    graph.add_edge(START, "ask")
    state = call(graph.compile(), "invoke", turn(), {"configurable": {"sensecheck_domain": "rivers"}})
    assert texts(inner.sent[0]) == [("human", NOTED)]
    assert texts(state["messages"]) == [("human", TEXT), ("ai", "Nobody.")]
    assert fake.requests[0].domain == "rivers"
