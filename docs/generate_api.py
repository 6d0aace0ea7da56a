"""Write ``docs/api.md`` from the docstrings: ``python docs/generate_api.py``.

Names, order and text come from the source alone, so the same source gives the same page.
"""

from __future__ import annotations

import ast
import functools
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import middleware
import middleware.agents
import middleware.chat_model
import middleware.events
import middleware.scope
import middleware.testing
import middleware.types
import sae_runtime.errors
import sae_runtime.glossary
from sae_runtime.errors import SensecheckError

PAGE = Path(__file__).with_name("api.md")
HEAD = """# API reference

Made from the docstrings by `python docs/generate_api.py`; do not edit. [how-to/](how-to/README.md) shows how things are used,
[langchain.md](langchain.md) what the annotator does for each verb and message.
"""
_SECTION = re.compile(r"(Args|Attributes|Raises|Returns):")
_FIELD = re.compile(r"Annotated\[([^\[\],]+), Field\([^()]*\)\]")
_WIDE = 100  # a longer signature has one parameter per line


def page() -> str:
    """The whole page."""
    parts = [HEAD, "## middleware", described(middleware)]
    for name in sorted(middleware.__all__, key=str.lower):
        found = getattr(middleware, name)
        if inspect.isclass(found):
            parts += [] if issubclass(found, Exception) else documented_class(found, "middleware")
        else:
            parts += documented_value(middleware.types, name)
    parts += ["## middleware.chat_model", *documented_class(middleware.chat_model.AnnotatedChatModel)]
    parts += ["## middleware.agents", described(middleware.agents)]
    parts += documented_class(middleware.agents.SensecheckMiddleware)
    parts += ["## middleware.events", described(middleware.events)]
    parts += documented_class(middleware.events.ReadingEvent)
    parts += ["## middleware.scope", *call_options()]
    parts += ["## middleware.testing", described(middleware.testing)]
    parts += documented_class(middleware.testing.FakeInspector)
    parts += ["## sae_runtime.glossary", described(sae_runtime.glossary), "`Glossary` is above, under `middleware`."]
    parts += documented_class(sae_runtime.glossary.Term, "sae_runtime.glossary")
    parts += ["## sae_runtime.errors", described(sae_runtime.errors)]
    parts += documented_class(SensecheckError)
    return "\n\n".join(part.strip("\n") for part in parts if part.strip()) + "\n"


def documented_class(owner: type, module: str | None = None) -> list[str]:
    """Heading, signature, docstring and public members."""
    import_line = f"from {module or owner.__module__} import {owner.__name__}"
    parts = [f"### {owner.__name__}", code(f"{import_line}\n\n{call(owner.__name__, fields(owner))}"), described(owner)]
    if getattr(owner, "_is_protocol", False):
        parts[1] = code(import_line)
    for name, member in vars(owner).items():
        if not name.startswith("_") and (text := documented_member(name, member)):
            parts.append(text)
    return parts


def documented_member(name: str, member: Any) -> str:
    """A method or property with its docstring; empty for anything else, and for what pydantic adds."""
    if isinstance(member, property | functools.cached_property):
        function = member.fget if isinstance(member, property) else member.func
        assert function is not None  # noqa: S101 (every property here has a getter)
        head = f"#### {name}: {shown(function.__annotations__.get('return', ''))}"
    else:
        function = getattr(member, "__func__", member)
        if not inspect.isfunction(function) or not inspect.getdoc(function) or name.startswith("model_"):
            return ""
        kind = (
            "classmethod "
            if isinstance(member, classmethod)
            else "async "
            if inspect.iscoroutinefunction(function)
            else ""
        )
        skipped = 0 if isinstance(member, staticmethod) else 1
        signature = inspect.signature(function)
        given = parameters(signature, skipped)
        returned = "" if signature.return_annotation is signature.empty else f" -> {shown(signature.return_annotation)}"
        head = f"#### {name}\n\n" + code(call(kind + name, given) + returned)
    return head + "\n\n" + described(function)


def fields(owner: type) -> list[str]:
    """What a class is made with, as in the source."""
    if getattr(owner, "_is_protocol", False):
        return []
    own = vars(owner).get("__annotations__", {})
    described_by_fields = (
        hasattr(owner, "model_fields") or hasattr(owner, "__dataclass_fields__") or hasattr(owner, "__total__")
    )
    if not described_by_fields:
        initial = vars(owner).get("__init__")
        return parameters(inspect.signature(initial), 1) if inspect.isfunction(initial) else []
    named = {name: hint for name, hint in own.items() if not name.startswith("_") and name != "model_config"}
    star = ["*"] if hasattr(owner, "model_fields") and named else []
    return star + [f"{name}: {shown(hint)}{default(owner, name)}" for name, hint in named.items()]


def default(owner: type, name: str) -> str:
    """`` = value`` of a field that has a default."""
    if name in getattr(owner, "model_fields", {}):
        info = owner.model_fields[name]  # type: ignore[attr-defined]
        return "" if info.is_required() else f" = {value(info.get_default(call_default_factory=True))}"
    if name in getattr(owner, "__dataclass_fields__", {}):
        info = owner.__dataclass_fields__[name]  # type: ignore[attr-defined]
        made = info.default_factory() if callable(info.default_factory) else info.default
        return "" if info.default is info.default_factory else f" = {value(made)}"
    return ""


def parameters(signature: inspect.Signature, skipped: int) -> list[str]:
    """Parameters as in the source, without the first ``skipped``."""
    shown_ones: list[str] = []
    starred = False
    for parameter in list(signature.parameters.values())[skipped:]:
        prefix = {"VAR_POSITIONAL": "*", "VAR_KEYWORD": "**"}.get(parameter.kind.name, "")
        starred = starred or prefix == "*"
        if parameter.kind is parameter.KEYWORD_ONLY and not starred:
            shown_ones.append("*")
            starred = True
        hint = "" if parameter.annotation is parameter.empty else f": {shown(parameter.annotation)}"
        equals = " = " if hint else "="
        given = "" if parameter.default is parameter.empty else f"{equals}{value(parameter.default)}"
        shown_ones.append(f"{prefix}{parameter.name}{hint}{given}")
    return shown_ones


def documented_value(module: ModuleType, name: str) -> list[str]:
    """A type alias or constant: its source and the string below it."""
    body = ast.parse(inspect.getsource(module)).body
    for statement, following in zip(body, [*body[1:], None], strict=True):
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == name:
            documented = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
            text = str(following.value.value) if documented else ""  # type: ignore[union-attr]
            return [f"### {name}", code(ast.unparse(statement)), markdown(text)]
    raise LookupError(f"{module.__name__} does not define {name}.")


def call_options() -> list[str]:
    """:data:`middleware.scope.CALL_OPTIONS` as a table."""
    _, _, text = documented_value(middleware.scope, "CALL_OPTIONS")
    rows = ["| name | type | what it is |", "|---|---|---|"]
    for spec in middleware.scope.CALL_OPTIONS:
        hint = inspect.formatannotation(spec.annotation).replace("|", "\\|")
        rows.append(f"| `{spec.id}` | `{re.sub(r'[a-z_.]+[.](?=[A-Z])', '', hint)}` | {spec.description} |")
    return ["### CALL_OPTIONS", text, "\n".join(rows)]


def described(documented: Any) -> str:
    """The docstring of a module, class or function as Markdown; inherited ones are left out."""
    text = vars(documented).get("__doc__") if inspect.isclass(documented) else documented.__doc__
    return markdown(inspect.cleandoc(text or ""))


def markdown(text: str) -> str:
    """A docstring in Google style with RST roles as Markdown."""
    return re.sub(r"\n{3,}", "\n\n", "\n".join(blocks(links(text).splitlines()))).strip("\n")


def call(name: str, given: list[str]) -> str:
    """``name(...)``, on one line if it fits."""
    line = f"{name}({', '.join(given)})"
    return line if len(line) <= _WIDE else "\n".join([f"{name}(", *(f"    {item}," for item in given), ")"])


def links(text: str) -> str:
    """RST roles and literals as Markdown code spans."""
    text = re.sub(r":[a-z]+:`~(?:[\w.]+\.)?(\w+)`", r"`\1`", text)
    text = re.sub(r":[a-z]+:`([^`]+)`", r"`\1`", text)
    return re.sub(r"``([^`]+)``", r"`\1`", text)


def blocks(lines: list[str]) -> Iterator[str]:
    """Literal blocks as code, sections as bold words with lists."""
    position = 0
    while position < len(lines):
        line = lines[position]
        position += 1
        if _SECTION.fullmatch(line):
            body, position = indented(lines, position)
            yield from ["", f"**{line[:-1]}**", "", *listed(body, named=line != "Returns:"), ""]
        elif line.endswith("::"):
            body, position = indented(lines, position)
            head = line[:-1] if line != "::" else ""
            yield from [head, *([""] if head else []), *code("\n".join(body).strip("\n")).splitlines(), ""]
        else:
            yield line


def indented(lines: list[str], position: int) -> tuple[list[str], int]:
    """The indented lines from ``position`` on, without their indentation, and where they end."""
    end = position
    while end < len(lines) and (not lines[end] or lines[end].startswith(" ")):
        end += 1
    return textwrap.dedent("\n".join(lines[position:end])).splitlines(), end


def listed(lines: list[str], *, named: bool) -> list[str]:
    """The entries of a section as list items."""
    items: list[str] = []
    for line in filter(None, lines):
        if line.startswith(" ") or (items and not named):
            items[-1] += " " + line.strip()
        else:
            items.append(line)
    if not named:
        return items
    return [
        re.sub(r"^([\w, ]+):", lambda found: "- " + re.sub(r"\w+", r"`\g<0>`", found[1]) + ":", item) for item in items
    ]


def code(text: str) -> str:
    """A code block; ``py``, because the blocks marked ``python`` are run by the tests."""
    return f"```py\n{text}\n```"


def shown(hint: Any) -> str:
    """An annotation as it stands in the source."""
    text = hint if isinstance(hint, str) else getattr(hint, "__forward_arg__", None) or inspect.formatannotation(hint)
    return _FIELD.sub(r"\1", str(text))


def value(default: Any) -> str:
    """A default."""
    return repr(default) if not inspect.isclass(default) else default.__name__


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
    sys.stdout.write(f"{PAGE} is written.\n")
