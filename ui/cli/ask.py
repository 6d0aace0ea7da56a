"""``sensecheck ask``: one prompt read, flagged, noted and answered."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Literal, cast, get_args

from langchain_core.messages import BaseMessage, HumanMessage, convert_to_openai_messages
from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.text import Text

from middleware import (
    Annotated,
    CatalogSource,
    Glossary,
    InspectionSource,
    MentionReading,
    Placement,
    SAEAnnotator,
    ServerSource,
)
from sae_runtime.catalog.location import CatalogLocation
from sae_runtime.errors import InputError
from ui.backend import Backend, open_backend
from ui.cli.terminal import visible, visible_json

_READING_SECONDS = 600.0  # nothing else waits for this reading


@dataclass(frozen=True)
class AskOptions:
    """The command's options; see ``sensecheck ask --help``."""

    model: str
    domain: str | None
    glossary: Path | None
    answer: bool
    url: str | None
    placement: str
    max_tokens: int
    artefacts: Path | None
    catalog: CatalogLocation | None
    as_json: bool


def run_ask(prompt: str, options: AskOptions) -> None:
    """Read, answer and print."""
    if not prompt.strip():
        raise InputError("The prompt is empty.", "Write something to ask.")
    if options.placement not in get_args(Placement):
        raise InputError(
            f"There is no placement '{options.placement}'.", f"Use one of {', '.join(get_args(Placement))}."
        )
    glossary = Glossary.from_yaml(options.glossary) if options.glossary else None
    with _reader(options) as (source, backend):
        annotator = SAEAnnotator(
            source=source,
            placement=cast("Placement", options.placement),
            domain=options.domain,
            glossary=glossary,
            deadline=_READING_SECONDS,
            grace=None,
            on_error="raise",
        )
        result = annotator.annotate(prompt)
        report = _report(prompt, result)
        if backend is not None:
            _answer(report, result, backend, options)
    if options.as_json:
        print(visible_json(json.dumps(report, ensure_ascii=False, indent=1)))
    else:
        _show(report, result)


@contextmanager
def _reader(options: AskOptions) -> Iterator[tuple[InspectionSource, Backend | None]]:
    """Without an answer the reading runs in this process; otherwise in the server that answers."""
    if not options.answer:
        yield CatalogSource.open(options.model, artefacts=options.artefacts, catalog=options.catalog), None
        return
    with open_backend(options.model, url=options.url, artefacts=options.artefacts, catalog=options.catalog) as backend:
        yield ServerSource(backend.url, api_key=backend.api_key), backend


def _report(prompt: str, result: Annotated) -> dict[str, Any]:
    """The documented JSON contract."""
    reading = result.reading
    assert reading is not None  # noqa: S101 (on_error="raise")
    mentions = [
        m.model_dump(include={"concept", "text", "start", "end", "reading", "intended"}) for m in reading.mentions
    ]
    misreads = [m.model_dump(exclude={"message", "text"}) for m in reading.misreads]
    return {
        "model": reading.model,
        "prompt": prompt,
        "mentions": mentions,
        "misreads": misreads,
        "imitations": [imitation.model_dump() for imitation in reading.imitations],
        "places": [place.model_dump() for place in result.places],
        "notes_left_out": result.notes_left_out,
        "annotated_messages": convert_to_openai_messages(result.messages),
        "answer": None,
        "plain_answer": None,
        "truncated": reading.truncated,
        "timings_ms": dict(reading.timings_ms),
    }


def _answer(report: dict[str, Any], result: Annotated, backend: Backend, options: AskOptions) -> None:
    """The answer, and when a note was added the answer without it too."""
    model = backend.chat_model(max_tokens=options.max_tokens)
    kinds: list[tuple[Literal["answer", "plain_answer"], list[BaseMessage]]] = [("answer", result.messages)]
    if result.notes:
        kinds.append(("plain_answer", [HumanMessage(report["prompt"])]))
    for kind, messages in kinds:
        began = perf_counter()
        report[kind] = model.invoke(messages).text
        report["timings_ms"][kind] = round((perf_counter() - began) * 1e3, 1)


def _show(report: dict[str, Any], result: Annotated) -> None:
    console = Console()
    reading = result.reading
    assert reading is not None  # noqa: S101 (on_error="raise")
    console.print(Panel(_marked(report["prompt"], reading.mentions, result), title="prompt", title_align="left"))
    for mention in reading.mentions:
        console.print(
            f"[bold]{_safe(mention.text)}[/]  read as {_shares(mention.reading)}   intended {_shares(mention.intended)}"
        )
    if not reading.misreads:
        console.print("[green]Nothing is flagged.[/]")
    for misread in reading.misreads:
        console.print(
            f"[bold red]misread[/] [bold]{_safe(misread.text)}[/]: read as {_safe(misread.read_as)} "
            f"{'at first ' if misread.early else ''}({misread.p_read_as:.0%}), "
            f"meant {_safe(misread.intended)} ({misread.p_intended:.0%})"
        )
        console.print(f"  because of {_safe(', '.join(misread.evidence)) or 'the context'}")
        for feature in misread.features:
            console.print(
                f"  feature {feature.index}: {_safe(feature.label)} ({feature.activation:.2f})", highlight=False
            )
        console.print(f"  [yellow]note:[/] {_safe(misread.note)}")
    if result.notes_left_out:
        console.print(f"[yellow]{result.notes_left_out} more notes are left out: there are too many.[/]")
    if reading.imitations:
        console.print("[yellow]The prompt itself holds text that looks like a note; it is none of Sensecheck's.[/]")
    if reading.mentions_left_out:
        console.print(f"[yellow]{reading.mentions_left_out} more mentions are not read: there are too many.[/]")
    if reading.truncated:
        console.print("[yellow]The prompt is longer than the model's context; only its head was read.[/]")
    if report["answer"] is not None:
        console.print(
            Panel(
                Text(visible(report["answer"])),
                title="answer with notes" if result.notes else "answer",
                title_align="left",
            )
        )
    if report["plain_answer"] is not None:
        console.print(Panel(Text(visible(report["plain_answer"])), title="answer without notes", title_align="left"))


def _marked(prompt: str, mentions: list[MentionReading], result: Annotated) -> Text:
    text = Text(visible(prompt))
    flagged = {(m.start, m.end) for m in (result.reading.misreads if result.reading else [])}
    for mention in mentions:
        style = "bold red underline" if (mention.start, mention.end) in flagged else "green"
        text.stylize(style, mention.start, mention.end)
    return text


def _shares(probabilities: dict[str, float]) -> str:
    ranked = sorted(probabilities.items(), key=lambda item: -item[1])
    return _safe(", ".join(f"{name} {share:.0%}" for name, share in ranked))


def _safe(text: str) -> str:
    """Text of others as rich may print it: neither markup nor control characters take effect."""
    return escape(visible(text))
