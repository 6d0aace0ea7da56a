"""The documentation: every Python block runs, commands and links exist, generated pages are up to date.

Nothing here needs a model or a network. Readings are a FakeInspector's, answers a fake model's.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import json
import re
import shlex
import socket
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import langchain_openai
import openai
import pytest
import typer.main
from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.utils.function_calling import convert_to_openai_tool
from openai.types.chat import ChatCompletion, ChatCompletionChunk

import middleware
import middleware.sources
from middleware import InspectionRequest, SAEAnnotator
from middleware.metrics import METRICS
from middleware.testing import FakeInspector
from sae_runtime.detector.results import Reading
from ui.cli.app import app

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
API = ROOT / "docs" / "api.md"
GENERATOR = ROOT / "docs" / "generate_api.py"
LANGCHAIN = ROOT / "docs" / "langchain.md"

_FENCE = re.compile(r"^(?P<indent> *)```(?P<kind>\w*)\n(?P<text>.*?)^(?P=indent)```$", re.M | re.S)
_FILE = re.compile(r"# file: (\S+)\n")
_NOT_RUN = re.compile(r"<!-- not run:(.*?)-->\s*\Z")
_LINK = re.compile(r"!?\[[^\]]*\]\(([^()\s]+)\)")
_CODE_SPAN = re.compile(r"`([^`\n]+)`")

# Options in the documentation that `sensecheck serve` hands on to vLLM.
VLLM_OPTIONS = {"--data-parallel-size", "--max-model-len", "--otlp-traces-endpoint"}
NOTES = {"mouse": '"mouse" is a rodent here.', "spring": '"spring" is a coil of metal here.', "fan": "A fan blows air."}


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text without indentation, its line in the page, why it is not run (or None)."""

    kind: str
    text: str
    line: int
    not_run: str | None


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks_of(page: Path) -> list[Block]:
    source = page.read_text("utf-8")
    blocks = []
    for found in _FENCE.finditer(source):
        mark = _NOT_RUN.search(source, 0, found.start())
        reason = mark[1].strip() if mark else None
        blocks.append(
            Block(found["kind"], textwrap.dedent(found["text"]), source.count("\n", 0, found.start()) + 2, reason)
        )
    return blocks


def prose_of(page: Path) -> str:
    """The page without its fenced blocks."""
    return _FENCE.sub("", page.read_text("utf-8"))


def pages_with(kind: str) -> list[Any]:
    return [pytest.param(page, id=name_of(page)) for page in PAGES if any(b.kind == kind for b in blocks_of(page))]


every_page = pytest.mark.parametrize("page", PAGES, ids=name_of)


# What snippets run on instead of servers and models


class DocsSource(FakeInspector):
    """Misreads the words in ``NOTES`` and every term of a request's glossary; takes the arguments of a ServerSource."""

    def __init__(
        self, url: str = "", *, api_key: str | None = None, artefacts: Path | None = None, tokens: bool = False
    ) -> None:
        assert artefacts is None or isinstance(artefacts, Path)
        super().__init__()

    def inspect(self, request: InspectionRequest, *, deadline: float) -> Reading:
        terms = request.glossary.terms if request.glossary else []
        own = {form: term.note_text.replace("{mention}", form) for term in terms for form in term.all_forms}
        self.notes = NOTES | own
        return super().inspect(request, deadline=deadline)


class DocsChatModel(BaseChatModel):
    """Takes the arguments of a ChatOpenAI; answers in three pieces, or by a call of the tool that it has to use."""

    base_url: str
    api_key: str
    model: str

    @property
    def _llm_type(self) -> str:
        return "docs"

    def bind_tools(self, tools: Sequence[Any], *, tool_choice: Any = None, **kwargs: Any) -> Any:
        return self.bind(tools=[convert_to_openai_tool(tool) for tool in tools], tool_choice=tool_choice)

    def _generate(
        self, messages: list[BaseMessage], stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None, **kwargs: Any,
    ) -> ChatResult:  # fmt: skip
        message = AIMessage("Twice a year.")
        if kwargs.get("tool_choice"):
            function = kwargs["tools"][0]["function"]
            arguments = dict.fromkeys(function["parameters"]["properties"], "twice")
            message = AIMessage("", tool_calls=[{"name": function["name"], "args": arguments, "id": "1"}])
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _stream(
        self, messages: list[BaseMessage], stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None, **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:  # fmt: skip
        for piece in ("Twice", " a", " year."):
            yield ChatGenerationChunk(message=AIMessageChunk(piece))


class DocsClient:
    """Answers like ``sensecheck serve`` in one-call mode; see sae_runtime/serving/one_call.py."""

    def __init__(self, base_url: str, api_key: str) -> None:
        self.chat = self
        self.completions = self

    def create(
        self, *, model: str, messages: list[dict[str, str]], extra_body: dict[str, Any], stream: bool = False
    ) -> Any:
        options = extra_body["sensecheck"]
        assert options["annotate"]
        assert set(options) <= {"annotate", "domain"}
        notes = [NOTES["mouse"]] if "mouse" in messages[-1]["content"] else []
        report = {"flagged": bool(notes), "misreads": [], "notes": notes, "bypassed": None}
        head = {"id": "1", "created": 0, "model": model}
        if stream:
            delta = {"index": 0, "delta": {"content": "Twice a year."}, "finish_reason": "stop"}
            pieces = [{"choices": [delta]}, {"choices": [], "sensecheck": report}]
            kind = {"object": "chat.completion.chunk"}
            return iter([ChatCompletionChunk.model_validate({**head, **kind, **piece}) for piece in pieces])
        choice = {"index": 0, "message": {"role": "assistant", "content": "Twice a year."}, "finish_reason": "stop"}
        answer = {**head, "object": "chat.completion", "choices": [choice], "sensecheck": report}
        return ChatCompletion.model_validate(answer)


def _like(original: Any) -> Any:
    """A class method that checks its arguments against ``original`` and opens a fake source."""

    def opened(cls: type[SAEAnnotator], *args: Any, **kwargs: Any) -> SAEAnnotator:
        given = inspect.signature(original).bind(*args, **kwargs).arguments
        return cls(source=DocsSource(), **given.get("options", {}))

    return classmethod(opened)


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder in which snippets run, with everything that they reach for replaced."""

    def refuse(*args: Any) -> None:
        raise AssertionError("a snippet reaches for the network")

    monkeypatch.setattr(SAEAnnotator, "from_url", _like(SAEAnnotator.from_url))
    monkeypatch.setattr(SAEAnnotator, "from_catalog", _like(SAEAnnotator.from_catalog))
    for module in (middleware, middleware.sources):
        monkeypatch.setattr(module, "ServerSource", DocsSource)
    monkeypatch.setattr(langchain_openai, "ChatOpenAI", DocsChatModel)
    monkeypatch.setattr(openai, "OpenAI", DocsClient)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def meters(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A page may set the meter provider; other tests do not see it."""
    from opentelemetry import metrics

    made: list[Any] = []

    def set_meter_provider(provider: Any) -> None:
        made.append(provider)
        monkeypatch.setattr(metrics, "get_meter", provider.get_meter)
        monkeypatch.setattr(METRICS, "_made", None)

    monkeypatch.setattr(metrics, "set_meter_provider", set_meter_provider)
    yield
    for provider in made:
        provider.shutdown()


@pytest.mark.parametrize("page", pages_with("python"))
def test_snippets_run(page: Path, stage: Path, meters: None, capsys: pytest.CaptureFixture[str]) -> None:
    """Blocks of a page share their names and run in order; then the tests that they define."""
    namespace: dict[str, Any] = {"__name__": "docs"}
    for block in blocks_of(page):
        if named := _FILE.match(block.text):
            (stage / named[1]).write_text(block.text[named.end() :], "utf-8")
        if block.kind != "python" or block.not_run is not None:
            continue
        # Line numbers in a traceback are those of the page.
        tree = ast.parse("\n" * (block.line - 1) + block.text, name_of(page))
        exec(compile(tree, name_of(page), "exec", dont_inherit=True), namespace)  # noqa: S102
    for name, found in list(namespace.items()):
        if name.startswith("test_"):
            found()


def test_the_glossary_page_shows_the_prompt_that_is_really_sent(stage: Path) -> None:
    page = ROOT / "docs" / "how-to" / "glossary.md"
    blocks = blocks_of(page)
    (written,) = [b.text for b in blocks if b.text.startswith("# file: glossary.yaml")]
    shown = next(b.text for b in blocks if b.kind == "text")
    (stage / "glossary.yaml").write_text(written, "utf-8")
    glossary = middleware.Glossary.from_yaml("glossary.yaml")
    (sent,) = SAEAnnotator.from_url("", glossary=glossary).invoke(shown.split("\n", 1)[0])
    assert sent.text == shown.strip()


@every_page
def test_blocks_that_are_not_run_say_why(page: Path) -> None:
    assert all(block.not_run for block in blocks_of(page) if block.not_run is not None)
    assert page.read_text("utf-8").count("<!-- not run:") == sum(b.not_run is not None for b in blocks_of(page))


@every_page
def test_only_the_generated_page_has_code_that_no_test_runs(page: Path) -> None:
    kinds = {block.kind for block in blocks_of(page)} - ({"py"} if page == API else set())
    assert kinds <= {"python", "yaml", "sh", "text", "mermaid", "json"}


# Links


def headings(page: Path) -> set[str]:
    """Anchors of the page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", _FENCE.sub("", page.read_text("utf-8")), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@every_page
def test_links_resolve(page: Path) -> None:
    for target in _LINK.findall(prose_of(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), f"{name_of(page)}: {target} does not exist"
        assert not anchor or anchor in headings(found), f"{name_of(page)}: {target} has no such heading"


def test_every_how_to_page_is_in_the_index() -> None:
    folder = ROOT / "docs" / "how-to"
    linked = set(_LINK.findall((folder / "README.md").read_text("utf-8")))
    assert {page.name for page in folder.glob("*.md")} - {"README.md"} <= linked


# Commands


def shell_lines(page: Path) -> list[str]:
    """The lines of all shell blocks, with continued lines joined."""
    text = "\n".join(block.text for block in blocks_of(page) if block.kind == "sh")
    return text.replace("\\\n", " ").splitlines()


def arguments(line: str, command: str) -> list[str] | None:
    """What follows ``command`` on a line, without variables and comments before and after; None: another command."""
    words = shlex.split(line, comments=True)
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words.pop(0)
    if not words or words[0].removeprefix(".venv/bin/") != command:
        return None
    end = next((i for i, word in enumerate(words) if word in {"|", "&", "&&", ">", ";"}), len(words))
    return words[1:end]


def parse(given: list[str]) -> list[str]:
    """Parse a command line of ``sensecheck`` without running it; returns what is handed on to vLLM."""
    command: Any = typer.main.get_command(app)
    context = command.make_context("sensecheck", list(given))
    while hasattr(command, "resolve_command"):
        rest = [*getattr(context, "_protected_args", []), *context.args]
        name, command, rest = command.resolve_command(context, rest)
        context = command.make_context(name, rest, parent=context)
    return [word.split("=")[0] for word in context.args if word.startswith("-")]


@pytest.mark.parametrize("page", pages_with("sh"))
def test_commands_and_their_options_exist(page: Path) -> None:
    for line in shell_lines(page):
        if (given := arguments(line, "sensecheck")) is not None:
            try:
                unknown = set(parse(given)) - VLLM_OPTIONS
            except Exception as error:
                pytest.fail(f"{name_of(page)}: {line.strip()}: {error}")
            assert not unknown, f"{name_of(page)}: {line.strip()}: {unknown}; add options of vLLM to VLLM_OPTIONS"


@pytest.mark.parametrize(
    "line", ["sensecheck nothing", "sensecheck ask hello --nothing", "sensecheck ask", "sensecheck db"]
)
def test_wrong_commands_are_found(line: str) -> None:
    with pytest.raises(Exception, match=r"^"):
        parse(arguments(line, "sensecheck") or [])


@every_page
def test_commands_in_the_text_exist(page: Path) -> None:
    """Code spans name commands and options; what a command needs may be left out."""
    root: Any = typer.main.get_command(app)
    for span in _CODE_SPAN.findall(prose_of(page)):
        words = re.sub(r"\|.*", "", span).split()
        if words[:1] != ["sensecheck"] or len(words) < 2:
            continue
        command, rest = root, words[1:]
        while rest and rest[0] in getattr(command, "commands", {}):
            command, rest = command.commands[rest[0]], rest[1:]
        assert command is not root, f"{name_of(page)}: `{span}`"
        run = getattr(command, "commands", {}).get("run", command)  # `build NAME` is short for `build run NAME`
        known = {option for parameter in run.params for option in parameter.opts + parameter.secondary_opts}
        used = {word for word in rest if word.startswith("-")} - {"--help"}
        assert used <= known | VLLM_OPTIONS, f"{name_of(page)}: `{span}`"


@every_page
def test_make_targets_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.M))
    spans = [span for span in _CODE_SPAN.findall(prose_of(page)) if re.fullmatch(r"make [a-z]+", span)]
    named = [given for line in [*shell_lines(page), *spans] if (given := arguments(line, "make"))]
    assert {word for given in named for word in given if re.fullmatch(r"[a-z]+", word)} <= targets


# Generated and tabulated


def test_the_api_page_is_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("generate_api", GENERATOR)
    assert spec
    assert spec.loader
    generator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)
    fresh = generator.page()
    assert fresh == generator.page()
    if API.read_text("utf-8") != fresh:
        pytest.fail("docs/api.md is not what the docstrings say now. Regenerate it: python docs/generate_api.py")


def named_tests(path: Path) -> set[str]:
    """Names of the tests of a file: functions, those of its classes as ``Class::test``, and classes of inherited tests."""
    body = ast.parse(path.read_text("utf-8")).body
    found = {node.name for node in body if isinstance(node, ast.ClassDef) and node.name.startswith("Test")}
    for node in body:
        inner = node.body if isinstance(node, ast.ClassDef) else [node]
        prefix = f"{node.name}::" if isinstance(node, ast.ClassDef) else ""
        found |= {prefix + f.name for f in inner if isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef)}
    return {name for name in found if name.split("::")[-1].lower().startswith("test")}


def test_the_tests_named_in_the_langchain_table_exist() -> None:
    folder = ROOT / "tests" / "unit" / "middleware"
    rows = [line for line in LANGCHAIN.read_text("utf-8").splitlines() if line.startswith("| ")]
    named = [match for row in rows for match in re.findall(r"`(test_\w+\.py)::([\w:]+)`", row)]
    assert len(named) > 20
    missing = [
        f"{file}::{test}"
        for file, test in named
        if not (folder / file).exists() or test not in named_tests(folder / file)
    ]
    assert not missing
    heads = ("| verb", "| input", "| setting", "| ---", "|---")
    bare = [row for row in rows if not row.startswith(heads) and "`test_" not in row]
    assert not bare, "these rows name no test"


def test_the_one_call_report_has_the_documented_fields() -> None:
    """The stub above answers as the server's source does."""
    source = (ROOT / "sae_runtime" / "serving" / "one_call.py").read_text("utf-8")
    answer = DocsClient("", "").create(
        model="m", messages=[{"content": ""}], extra_body={"sensecheck": {"annotate": True}}
    )
    for field in answer.sensecheck:
        assert json.dumps(field) in source
