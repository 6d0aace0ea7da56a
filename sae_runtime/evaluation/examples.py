"""The example table: what is flagged in fifty prompts with known senses, whatever comes out."""

from __future__ import annotations

from dataclasses import dataclass

from sae_runtime.detector import Inspector, Misread
from sae_runtime.evaluation.planted import read_planted
from sae_runtime.evaluation.prompts import PlantedPrompt, example_prompts


@dataclass(frozen=True)
class ExampleRow:
    """One prompt: probability that the reading gives the intended sense (None: not read), and its flags."""

    prompt: PlantedPrompt
    p_read: float | None
    flags: list[Misread]

    @property
    def verdict(self) -> str:
        """``right``: the planted sense is flagged as intended; ``false``: anything else is flagged."""
        if not self.flags:
            return "missed" if self.prompt.kind != "plain" else "quiet"
        hits = [f for f in self.flags if f.concept == self.prompt.concept and f.intended == self.prompt.intended]
        return "right" if hits and self.prompt.kind != "plain" else "false"


@dataclass(frozen=True)
class ExampleTable:
    """All rows of one model."""

    model: str
    rows: list[ExampleRow]

    def figures(self) -> dict[str, float | int | str | None]:
        """Flag precision and recall against the planted senses, and false flags on plain prompts."""
        verdicts = [row.verdict for row in self.rows]
        right, raised = verdicts.count("right"), verdicts.count("right") + verdicts.count("false")
        planted = sum(row.prompt.kind != "plain" for row in self.rows)
        plain = [row for row in self.rows if row.prompt.kind == "plain"]
        read = [row.p_read for row in self.rows if row.p_read is not None]
        return {
            "model": self.model,
            "prompts": len(self.rows),
            "planted": planted,
            "flagged": raised,
            "flag_precision": round(right / raised, 4) if raised else None,
            "flag_recall": round(right / planted, 4),
            "false_flag_rate_plain": round(sum(bool(row.flags) for row in plain) / len(plain), 4),
            "reading_agrees_with_intended": round(sum(p > 0.5 for p in read) / len(read), 4),
        }

    def markdown(self) -> str:
        """The table as Markdown, figures first."""
        lines = [f"# Flags on the fifty example prompts: {self.model}", ""]
        lines += [f"- {name.replace('_', ' ')}: {value}" for name, value in self.figures().items()]
        lines += ["", "Made by `sensecheck eval examples --model " + self.model + "`. A flag counts as right when it names the",
                  "planted sense in a planted prompt; `p(intended)` is what the reading gives the planted sense.", "",
                  "| id | kind | prompt | intended | domain | p(intended) | flagged | verdict |",
                  "|---|---|---|---|---|---|---|---|"]  # fmt: skip
        for row in self.rows:
            item = row.prompt
            flags = "; ".join(f"{f.text}: {f.read_as} → {f.intended}" for f in row.flags)
            share = "-" if row.p_read is None else f"{row.p_read:.2f}"
            text = item.prompt.replace("|", "\\|").replace("\n", " ")
            cells = [
                item.id,
                item.kind,
                text,
                f"{item.concept}: {item.intended}",
                item.domain or "",
                share,
                flags,
                row.verdict,
            ]
            lines.append("| " + " | ".join(cells) + " |")
        return "\n".join(lines) + "\n"


def read_examples(inspector: Inspector) -> ExampleTable:
    """Read the example prompts with ``inspector``."""
    rows = [
        ExampleRow(item, mention.reading.get(item.intended) if mention else None, reading.misreads)
        for item, reading, mention in read_planted(inspector, example_prompts(), "examples")
    ]
    return ExampleTable(inspector.view.model_name, rows)
