"""Whatever can be called can be awaited: the same arguments, the same results, the same errors, the same counters."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import json
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from langchain.agents.middleware import AgentMiddleware, ModelRequest, ModelResponse
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.runnables import Runnable

from middleware import CatalogSource, Glossary, InspectionRequest, InspectionSource, SAEAnnotator, ServerSource
from middleware.agents import SensecheckMiddleware
from middleware.chat_model import AnnotatedChatModel
from middleware.testing import FakeInspector
from sae_runtime.errors import EngineError, InputError, InspectionTimeout

NOTES = {"bank": "River.", "spring": "Coil."}
TEXT = "I sat on the bank."
SOURCES = {"inspect", "inspect_batch"}
# What is called and awaited, by class. A method that is in neither form alone is not listed.
PAIRS: list[tuple[type, set[str]]] = [
    (SAEAnnotator, {"invoke", "batch", "annotate", "annotate_batch", "prepare"}),
    (InspectionSource, SOURCES),
    (CatalogSource, SOURCES),
    (ServerSource, {*SOURCES, "close"}),
    (FakeInspector, SOURCES),
    (AnnotatedChatModel, {"invoke", "stream", "_generate", "_stream"}),
    (SensecheckMiddleware, {"wrap_model_call"}),
]


def pairs(owner: type) -> set[str]:
    """Methods that ``owner`` itself defines in both forms: ``x`` and ``ax``, ``_x`` and ``_ax``."""
    own = {name for name, value in vars(owner).items() if inspect.isfunction(value)}
    return {name for name in own if twin(name) in own}


def twin(name: str) -> str:
    return f"_a{name[1:]}" if name.startswith("_") else f"a{name}"


def written(annotation: Any) -> str:
    """An annotation without what makes it asynchronous."""
    text = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))
    for asynchronous, plain in (
        ("AsyncIterator", "Iterator"),
        ("AsyncCallbackManager", "CallbackManager"),
        ("Awaitable[ModelResponse[Any]]", "ModelResponse[Any]"),
    ):
        text = text.replace(asynchronous, plain)
    return text


def signature(owner: type, name: str) -> list[tuple[Any, ...]]:
    found = inspect.signature(getattr(owner, name))
    parameters = [(p.name, p.kind, p.default, written(p.annotation)) for p in found.parameters.values()]
    return [*parameters, ("return", written(found.return_annotation))]


@pytest.mark.parametrize(("owner", "names"), PAIRS, ids=lambda value: value.__name__ if isinstance(value, type) else "")
def test_both_forms_of_every_method_exist_and_take_the_same(owner: type, names: set[str]) -> None:
    assert pairs(owner) >= names
    public = {name for name in pairs(owner) if not name.startswith("_")}
    for name in names | public:
        assert signature(owner, name) == signature(owner, twin(name)), name


@pytest.mark.parametrize("owner", [owner for owner, _ in PAIRS], ids=lambda owner: owner.__name__)
def test_no_coroutine_is_without_its_plain_form(owner: type) -> None:
    functions = {name: value for name, value in vars(owner).items() if inspect.isfunction(value)}
    awaited = {
        name
        for name, value in functions.items()
        if (inspect.iscoroutinefunction(value) or inspect.isasyncgenfunction(value)) and not name.startswith("_")
    }
    assert awaited == {twin(name) for name in pairs(owner) if not name.startswith("_")} & awaited
    assert all(inspect.iscoroutinefunction(functions[name]) or inspect.isasyncgenfunction(functions[name]) for name in awaited)  # fmt: skip


@pytest.mark.parametrize("owner", [CatalogSource, ServerSource, FakeInspector], ids=lambda owner: owner.__name__)
def test_sources_take_what_the_protocol_says(owner: type) -> None:
    for name in (*SOURCES, *map(twin, SOURCES)):
        assert signature(owner, name) == signature(InspectionSource, name)


@pytest.mark.parametrize("name", ["wrap_model_call", "awrap_model_call"])
def test_the_agent_middleware_takes_what_langchain_gives(name: str) -> None:
    ours, theirs = (
        list(inspect.signature(getattr(o, name)).parameters) for o in (SensecheckMiddleware, AgentMiddleware)
    )
    assert ours == theirs


@pytest.mark.parametrize("name", ["invoke", "ainvoke", "batch", "abatch"])
def test_the_annotator_takes_what_every_runnable_takes(name: str) -> None:
    ours, theirs = (list(inspect.signature(getattr(o, name)).parameters) for o in (SAEAnnotator, Runnable))
    assert ours == theirs


class Listener(BaseCallbackHandler):
    """Keeps events, and errors of runs by their class."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def on_custom_event(self, name: str, data: Any, **belongs: Any) -> None:
        self.seen.append(data)

    def on_chain_error(self, error: BaseException, **about: Any) -> None:
        self.seen.append(type(error))


def outcome(run: Callable[[], Any]) -> Any:
    """What a call gives: its result, or its error's class and words."""
    try:
        return run()
    except Exception as error:
        return type(error), str(error)


def awaited(target: Any, method: str, *args: Any, **options: Any) -> Any:
    """The result of ``target.a<method>``."""

    async def run() -> Any:
        return await getattr(target, twin(method))(*args, **options)

    return asyncio.run(run())


def streamed(target: Any, method: str, *args: Any, **options: Any) -> list[Any]:
    """All that ``target.a<method>`` yields."""

    async def run() -> list[Any]:
        return [item async for item in getattr(target, twin(method))(*args, **options)]

    return asyncio.run(run())


INPUTS: list[Any] = [
    TEXT, "Nothing.", "", 42, None, [], [("human", TEXT)], [SystemMessage("bank"), HumanMessage("spring"), AIMessage("a")],
    {"messages": [("human", TEXT)]}, {"other": 1}, [HumanMessage([{"type": "text", "text": TEXT}, {"type": "image_url"}])],
    ("human", "bank"), [object()],
]  # fmt: skip
SETTINGS: list[dict[str, Any]] = [
    {}, {"placement": "inline"}, {"placement": "system"}, {"read": "all"}, {"observe": True}, {"only": ["spring"]},
    {"on_error": "raise"}, {"domain": "rivers"},
]  # fmt: skip
FAILURES = [None, EngineError("Broken.", "Mend it."), InspectionTimeout("Late."), InputError("Odd."), RuntimeError("x")]


def settings_id(value: Any) -> str:
    return str(value)


@pytest.mark.parametrize("settings", SETTINGS, ids=settings_id)
@pytest.mark.parametrize("error", FAILURES, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("method", ["invoke", "annotate"])
def test_annotating_gives_the_same(settings: dict[str, Any], error: Exception | None, method: str) -> None:
    sides = []
    for run in (
        lambda target, *args: getattr(target, method)(*args),
        lambda target, *args: awaited(target, method, *args),
    ):
        fake, listener = FakeInspector(NOTES, then=error), Listener()
        annotator = SAEAnnotator(source=fake, **settings)
        config = {"callbacks": [listener], "configurable": {"sensecheck_without": ["nothing"]}}
        results = [outcome(functools.partial(run, annotator, value, config)) for value in INPUTS]
        sides.append((results, annotator.stats, listener.seen, fake.requests, fake.deadlines))
    assert sides[0] == sides[1]
    assert len(sides[0][0]) == len(INPUTS)


@pytest.mark.parametrize("return_exceptions", [True, False])
@pytest.mark.parametrize("on_error", ["pass", "raise"])
def test_batches_give_the_same(return_exceptions: bool, on_error: Any) -> None:
    sides = []
    for run in (lambda target, *args, **o: target.batch(*args, **o), lambda *args, **o: awaited(args[0], "batch", *args[1:], **o)):  # fmt: skip
        fake, listener = FakeInspector(NOTES, outcomes=[None, FAILURES[1], None, FAILURES[2]]), Listener()
        annotator = SAEAnnotator(source=fake, on_error=on_error)
        config = {"callbacks": [listener], "max_concurrency": 3}
        found = [
            outcome(functools.partial(run, annotator, values, config, return_exceptions=return_exceptions))
            for values in ([TEXT] * 6, [], [TEXT, 42, ""], ["bank", "spring"])
        ]
        sides.append((str(found), annotator.stats, listener.seen, fake.requests, fake.batches))
    assert sides[0] == sides[1]
    assert sides[0][4][0] == (6, 3)


@pytest.mark.parametrize("value", INPUTS[:3], ids=str)
def test_streams_give_the_same(value: Any) -> None:
    annotator = SAEAnnotator(source=FakeInspector(NOTES))
    assert list(annotator.stream(value)) == streamed(annotator, "stream", value)
    chain = annotator | FakeListChatModel(responses=["Wet feet."])
    contents = [
        [chunk.content for chunk in chunks] for chunks in (chain.stream(value), streamed(chain, "stream", value))
    ]
    assert contents[0] == contents[1]
    assert "".join(contents[0]) == "Wet feet."


def test_preparing_gives_the_same() -> None:
    glossary = Glossary.from_dict({"churn": {"meaning": "customers who leave", "otherwise": "stirring milk"}})
    for error in FAILURES:
        sides = []
        for run in (
            lambda target, seconds: target.prepare(seconds),
            lambda *args: awaited(args[0], "prepare", args[1]),
        ):
            fake = FakeInspector(then=error)
            found = [
                outcome(functools.partial(run, SAEAnnotator(source=fake, glossary=some), 7.0))
                for some in (glossary, None)
            ]
            sides.append((found, fake.requests, fake.deadlines))
        assert sides[0] == sides[1]
        assert [request.glossary for request in sides[0][1]] == [glossary]  # without one there is nothing to do
        assert sides[0][2] == [7.0]


def request(text: str) -> InspectionRequest:
    return InspectionRequest([{"role": "user", "content": text}], [0], domain="rivers", only=frozenset({"bank"}))


class Stub:
    """Stands in for an Inspector; does what :class:`FakeInspector` does."""

    def __init__(self) -> None:
        self.fake = FakeInspector(NOTES)

    def inspect(self, messages: Any, *, tokens: bool, **options: Any) -> Any:
        if messages[0]["content"] == "broken":
            raise EngineError("Broken.", "Mend it.")
        return self.fake.inspect(InspectionRequest(messages, **options), deadline=0)

    def inspect_batch(self, asked: Any, *, limit: int | None) -> list[Any]:
        return [outcome_or_error(functools.partial(self.inspect, messages, **options)) for messages, options in asked]


def outcome_or_error(run: Callable[[], Any]) -> Any:
    try:
        return run()
    except Exception as error:
        return error


def answered(request: httpx.Request) -> httpx.Response:
    """A server that reads as :class:`FakeInspector` does, and breaks on "broken"."""
    body = json.loads(request.content)
    if body["messages"][0]["content"] == "broken":
        return httpx.Response(500, json={"error": {"message": "Broken."}})
    reading = FakeInspector(NOTES).inspect(InspectionRequest(body["messages"], body["read"]), deadline=0)
    return httpx.Response(200, text=reading.model_dump_json())


@pytest.fixture(params=["fake", "catalog", "server"])
def source(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A source of each kind, with nothing behind it."""
    if request.param == "fake":
        yield FakeInspector(NOTES)
    elif request.param == "catalog":
        yield CatalogSource(Stub())  # type: ignore[arg-type]
    else:
        for name in ("Client", "AsyncClient"):
            client = functools.partial(getattr(httpx, name), transport=httpx.MockTransport(answered))
            monkeypatch.setattr(f"middleware.sources.server.httpx.{name}", client)
        with contextlib.closing(ServerSource("http://127.0.0.1:1")) as source:
            yield source


def test_sources_give_the_same(source: Any) -> None:
    texts = [TEXT, "Nothing.", "broken", "bank\ud83c" if isinstance(source, ServerSource) else "bank", TEXT]
    alone = [outcome(functools.partial(source.inspect, request(text), deadline=30.0)) for text in texts]
    assert alone == [
        outcome(functools.partial(awaited, source, "inspect", request(text), deadline=30.0)) for text in texts
    ]
    together = source.inspect_batch([request(text) for text in texts], deadline=30.0, limit=2)
    awaited_together = awaited(source, "inspect_batch", [request(text) for text in texts], deadline=30.0, limit=2)
    for one, other, single in zip(together, awaited_together, alone, strict=True):
        found = [(type(item), str(item)) if isinstance(item, Exception) else item for item in (one, other)]
        assert found == [single, single]
    assert source.inspect_batch([], deadline=30.0) == awaited(source, "inspect_batch", [], deadline=30.0) == []


class Echo(FakeListChatModel):
    """Answers with what it was sent."""

    def _call(self, messages: Any, *args: Any, **options: Any) -> str:
        return " / ".join(str(message.content) for message in messages)


def test_the_chat_model_gives_the_same() -> None:
    model = AnnotatedChatModel(model=Echo(responses=[]), annotator=SAEAnnotator(source=FakeInspector(NOTES)))
    for value in (TEXT, "Nothing.", [("system", "s"), ("human", "spring")]):
        once, again = model.invoke(value), awaited(model, "invoke", value)
        assert once.content == again.content
        assert ("River." in once.content) == (value == TEXT)
    assert [m.content for m in model.batch([TEXT, "x"])] == [m.content for m in awaited(model, "batch", [TEXT, "x"])]
    streaming = AnnotatedChatModel(
        model=FakeListChatModel(responses=["Wet feet."]), annotator=SAEAnnotator(source=FakeInspector(NOTES))
    )
    assert [c.content for c in streaming.stream(TEXT)] == [c.content for c in streamed(streaming, "stream", TEXT)]
    assert streaming.annotator.stats.inspected == 2


def test_the_chat_model_fails_the_same() -> None:
    for error in FAILURES[1:]:
        annotator = SAEAnnotator(source=FakeInspector(NOTES, then=error), on_error="raise")
        model = AnnotatedChatModel(model=Echo(responses=[]), annotator=annotator)
        assert outcome(lambda model=model: model.invoke(TEXT)) == outcome(
            lambda model=model: awaited(model, "invoke", TEXT)
        )
        assert sum(annotator.stats.bypassed.values()) == 2


@pytest.mark.parametrize("placement", ["after", "inline", "system"])
@pytest.mark.parametrize("system", [None, SystemMessage("Be brief.")], ids=["bare", "system"])
def test_the_agent_middleware_gives_the_same(placement: Any, system: SystemMessage | None) -> None:
    sent: list[ModelRequest[Any]] = []
    response: Any = ModelResponse(result=[AIMessage("Wet feet.")])

    def handler(request: ModelRequest[Any]) -> ModelResponse[Any]:
        sent.append(request)
        return response

    async def ahandler(request: ModelRequest[Any]) -> ModelResponse[Any]:
        return handler(request)

    annotator = SAEAnnotator(source=FakeInspector(NOTES), placement=placement)
    middleware = SensecheckMiddleware(annotator)
    for text in (TEXT, "Nothing."):
        asked: ModelRequest[Any] = ModelRequest(
            model=Echo(responses=[]), messages=[HumanMessage(text)], system_message=system, runtime=SimpleNamespace()  # type: ignore[arg-type]
        )  # fmt: skip
        assert middleware.wrap_model_call(asked, handler) is response
        assert awaited(SimpleNamespace(awrap=middleware.awrap_model_call), "wrap", asked, ahandler) is response
        plain, asynchronous = sent[-2:]
        assert (plain.messages, plain.system_message) == (asynchronous.messages, asynchronous.system_message)
        assert (plain is asked) == (asynchronous is asked) == (text != TEXT)
        assert asked.messages == [HumanMessage(text)]
    assert (annotator.stats.inspected, annotator.stats.flagged) == (4, 2)
