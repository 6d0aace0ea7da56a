"""The build report: validation, escaping, self-containment, missing parts, equal bytes for equal input."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from sae_runtime.build.report import page as report_module
from sae_runtime.build.report.page import AIMS, write_report
from sae_runtime.errors import InputError
from sae_runtime.paths import REPORT_JSON_FILE, REPORT_PAGE_FILE

HOSTILE = "</title><script>alert(1)</script> & \"quoted\" 'x' $\\frac{1}{2}$ <img src=http://evil.example/a>"


def feature(**changes: Any) -> dict[str, Any]:
    defaults: dict[str, Any] = {
        "index": 17, "description": "river banks", "sentence": "Fires on banks of rivers.", "density": 0.0004,
        "precision": 0.91, "precision_low": 0.85, "precision_high": 0.95, "recall": 0.62, "balanced_accuracy": 0.81,
        "promoted": [" river", "\n"],
        "contexts": [{"text": "the bank of the river", "start": 4, "end": 8, "activation": 7.25}],
    }  # fmt: skip
    return defaults | changes


def point(**changes: Any) -> dict[str, Any]:
    defaults: dict[str, Any] = {
        "label": "wide", "site": "layer 8", "width": 4096, "l0_fraction": 0.009, "fvu": 0.047, "tokens": 2_000_000,
        "chosen": False,
    }  # fmt: skip
    return defaults | changes


def required() -> dict[str, Any]:
    return {
        "model": "tiny", "title": "A tiny build", "created": "2025-11-23T18:00:00+00:00",
        "command": "sensecheck build tiny.yaml", "figures": {"fvu": 0.047},
    }  # fmt: skip


def complete(**changes: Any) -> dict[str, Any]:
    fields = required() | {
        "figures": {"fvu": 0.047, "l0_fraction": 0.0095, "ce_recovered": 0.975, "dead_fraction": 0.0, "tokens_trained": 2_000_000,
                    "note": "seed 0", "another": 1.5},
        "control_figures": {"fvu": 0.83},
        "loss": [[0, 1.0], [100, 0.2], [200, 0.05]],
        "control_loss": [[0, 1.0], [200, 0.8]],
        "frontier": [point(), point(label="narrow", width=2048, fvu=0.08), point(label="chosen", site="layer 14", chosen=True)],
        "density": [0.0, 1e-5, 3e-4, 0.01, 1.0],
        "control_density": [0.0, 0.0, 0.2],
        "validation": {
            "gates": [{"name": "precision", "rule": "lower bound at least 0.7", "share": 0.8, "control_share": 0.02},
                      {"name": "live", "rule": "fires on unseen text", "share": 0.99}],
            "scores": {"precision": [0.9, 0.8, 1.0], "correlation": [-0.2, 0.4]},
            "control_scores": {"precision": [0.1, 0.0]},
            "catalogued_share": 0.71, "live_share": 0.99, "kept_precision_share": 0.96,
        },
        "readings": {"accuracy": 0.92, "dense_probe": 0.921},
        "calibration": {"prompts": 150, "precision": 0.9},
        "examples": {"best": [feature()], "median": [], "worst": [feature(index=4, description="nothing much")]},
        "data": [{"name": "chats", "licence": "CC BY 4.0", "tokens": 1200}, {"name": "novels", "licence": "public domain", "tokens": 34}],
    }  # fmt: skip
    return fields | changes


class Page(HTMLParser):
    """Elements with their attributes, the text outside of styles, and the text of every element by tag."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "br"):
            self._open.append(tag)
            self.text.setdefault(tag, []).append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        for tag in set(self._open):
            self.text[tag][-1] += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def words(self) -> str:
        return " ".join(self.text["body"][0].split())


@pytest.fixture
def written(tmp_path: Path) -> Callable[[dict[str, Any]], Page]:
    def write(fields: dict[str, Any]) -> Page:
        write_report(fields, tmp_path / "report")
        return Page((tmp_path / "report" / REPORT_PAGE_FILE).read_text("utf-8"))

    return write


def test_both_files_are_written_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    write_report(complete(), folder)
    assert sorted(path.name for path in folder.iterdir()) == [REPORT_PAGE_FILE, REPORT_JSON_FILE]
    text = (folder / REPORT_JSON_FILE).read_text("utf-8")
    fields = json.loads(text)
    assert text == json.dumps(fields, sort_keys=True, indent=1) + "\n"
    assert fields["figures"]["tokens_trained"] == 2_000_000
    assert fields["loss"] == [[0, 1.0], [100, 0.2], [200, 0.05]]


def test_equal_input_gives_equal_bytes_whatever_the_order_and_the_users_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import matplotlib

    write_report(complete(), tmp_path / "a")
    monkeypatch.setitem(matplotlib.rcParams, "axes.facecolor", "#ff0000")
    monkeypatch.setitem(matplotlib.rcParams, "svg.fonttype", "path")
    fields = complete()
    fields["figures"] = dict(reversed(fields["figures"].items()))
    fields["validation"]["scores"] = dict(reversed(fields["validation"]["scores"].items()))
    fields["calibration"] = dict(reversed(fields["calibration"].items()))
    write_report(dict(reversed(fields.items())), tmp_path / "b")
    for name in (REPORT_JSON_FILE, REPORT_PAGE_FILE):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert matplotlib.rcParams["svg.fonttype"] == "path"  # the caller's settings are as they were


def test_equal_bytes_in_another_process(tmp_path: Path) -> None:
    write_report(complete(), tmp_path / "here")
    (tmp_path / "input.json").write_text(json.dumps(complete()), "utf-8")
    script = (
        "import json, sys; from pathlib import Path; from sae_runtime.build.report.page import write_report\n"
        "write_report(json.loads(Path(sys.argv[1]).read_text('utf-8')), Path(sys.argv[2]))\n"
        "sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script, tmp_path / "input.json", tmp_path / "there"], check=True)
    assert (tmp_path / "here" / REPORT_PAGE_FILE).read_bytes() == (tmp_path / "there" / REPORT_PAGE_FILE).read_bytes()


def test_matplotlib_is_imported_only_when_plots_are_drawn() -> None:
    script = "import sys, sae_runtime.build.report; sys.exit('matplotlib' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_key_figures_stand_against_their_aims(written: Callable[[dict[str, Any]], Page]) -> None:
    words = written(complete()).words
    assert "Variance unexplained (FVU) 0.0470 aim at most 0.05: met randomly initialised twin: 0.8300" in words
    assert "Active latents per token (L0) 0.95 % aim at most 1 %: met" in words
    assert "Cross-entropy recovered 0.9750 aim at least 0.98: not met" in words
    assert "Dead latents 0.00 % aim at most 1 %: met" in words
    assert "Catalogued descriptions that keep their precision 96.00 % aim at least 95 %: met" in words


def test_a_figure_never_looks_like_the_other_side_of_its_aim() -> None:
    fvu, active = AIMS[0], AIMS[1]
    assert fvu.text(0.05) == "0.0500" and fvu.met(0.05)
    assert fvu.text(0.0500004) == "0.0500004" and not fvu.met(0.0500004)
    assert active.text(0.01001) == "1.001\u00a0%"


def test_plots_have_text_alternatives_and_legible_text(written: Callable[[dict[str, Any]], Page]) -> None:
    page = written(complete())
    plots = page.all("svg")
    assert len(plots) == 5  # frontier, loss, density, two scores
    assert all(plot["role"] == "img" and plot["aria-label"] for plot in plots)
    assert len(page.all("figure")) == len(page.all("figcaption")) == 5
    assert "The ring marks the published one, chosen: FVU 0.0470 with 0.90 % active." in page.words
    assert "Of 5 latents 1 never fired. The median latent fires on 0.03 % of the tokens" in page.words
    assert "3 features, median 0.900; randomly initialised twin: 2 features, median 0.050." in page.words
    assert {"site layer 8", "training step", "never", "10⁻⁵"} <= {text.strip() for text in page.text["text"]}


def test_plots_take_their_colours_from_the_page(written: Callable[[dict[str, Any]], Page]) -> None:
    page = written(complete())
    styles = [attributes["style"] or "" for _, attributes in page.elements if "style" in attributes]
    assert any("var(--series-0)" in style for style in styles)
    used = {part.split(")")[0] for style in styles for part in style.split("var(--")[1:]}
    light, dark = page.text["style"][0].split("@media (prefers-color-scheme: dark)")
    assert all(f"--{name}:" in light and f"--{name}:" in dark.split("\n")[0] for name in used)
    assert not any("#" in style.replace("url(#", "") for style in styles)  # none is fixed


def test_identities_are_unique_and_references_resolve(written: Callable[[dict[str, Any]], Page]) -> None:
    page = written(complete())
    identities = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(identities) == len(set(identities))
    links = [value for _, attributes in page.elements for name, value in attributes.items() if name.endswith("href")]
    assert links and all((link or "").removeprefix("#") in identities for link in links)


def test_a_complete_report_misses_nothing(written: Callable[[dict[str, Any]], Page]) -> None:
    words = written(complete()).words
    assert "The build did not measure" not in words
    assert "Every gate is passed by 99.00 % of the live latents and by 71.00 % of the catalogued features;" in words
    assert "livefires on unseen text99.00 %not measured" in words
    assert "All sources1,234" in words


def test_the_page_loads_and_runs_nothing(written: Callable[[dict[str, Any]], Page]) -> None:
    page = written(complete(title=HOSTILE))
    names = {name for name, _ in page.elements}
    assert not names & {"script", "link", "img", "iframe", "object", "embed", "foreignobject", "base", "form"}
    for name, attributes in page.elements:
        for key, value in attributes.items():
            assert not key.startswith("on") and key not in ("src", "srcset", "action", "xmlns")
            assert key in ("aria-label", "title") or "//" not in (value or ""), (name, key, value)
    assert "@import" not in page.text["style"][0] and "url(" not in page.text["style"][0]
    policy = next(meta for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert policy["content"] == "default-src 'none'; style-src 'unsafe-inline'"


def test_hostile_text_is_inert_wherever_it_stands(written: Callable[[dict[str, Any]], Page]) -> None:
    fields = complete(model=HOSTILE, title=HOSTILE, command=HOSTILE)
    fields["figures"] |= {HOSTILE: HOSTILE}
    fields["frontier"] = [point(label=HOSTILE, site=HOSTILE, chosen=True)]
    fields["validation"]["gates"] = [{"name": HOSTILE, "rule": HOSTILE, "share": 0.5}]
    fields["validation"]["scores"] = {HOSTILE: [0.5]}
    fields["validation"]["control_scores"] = {}
    fields["readings"] = fields["calibration"] = {HOSTILE: 0.5}
    fields["data"] = [{"name": HOSTILE, "licence": HOSTILE, "tokens": 1}]
    context = {"text": f"a {HOSTILE} b", "start": 2, "end": 2 + len(HOSTILE), "activation": 1.0}
    fields["examples"]["best"] = [
        feature(description=HOSTILE, sentence=HOSTILE, promoted=[HOSTILE], contexts=[context])
    ]
    page, clean = written(fields), written(complete())
    assert {name for name, _ in page.elements} <= {name for name, _ in clean.elements}
    assert page.text["mark"][0] == HOSTILE
    assert page.text["title"][0] == page.text["h1"][0] == page.text["code"][-1] == HOSTILE
    score = page.all("svg")[-1]
    assert score["aria-label"] and page.text["title"][-1].startswith("Validation: </title><script>alert(1)")
    assert any(text.strip().startswith("site </title><script>alert") for text in page.text["text"])


@pytest.mark.parametrize("site", ["_hidden", "$unclosed", "\\", "河岸", "a\x00\n\u202eb\ud800", "", "x" * 200])
def test_odd_labels_can_be_drawn(written: Callable[[dict[str, Any]], Page], site: str) -> None:
    page = written(complete(frontier=[point(site=site, label=site, chosen=True)]))
    legend = next(text for text in page.text["text"] if text.strip().startswith("site"))
    assert len(legend.strip()) <= len("site ") + 32
    assert "\x00" not in legend and "\u202e" not in legend


def test_control_characters_are_shown_as_pictures(written: Callable[[dict[str, Any]], Page]) -> None:
    contexts = [{"text": "a\x00b\x1b\u202e\ud800c\td\ne", "start": 1, "end": 2, "activation": 1.0}]
    page = written(complete(examples={"best": [feature(contexts=contexts)], "median": [], "worst": []}))
    assert page.text["mark"] == ["␀"]
    assert "a␀b␛\ufffd\ufffdc\td\ne" in page.text["span"]
    assert {text for text in page.text["code"] if "↵" in text} == {"↵"}


def test_a_marked_line_end_can_be_seen(written: Callable[[dict[str, Any]], Page]) -> None:
    contexts = [{"text": "a\n\nb", "start": 1, "end": 3, "activation": 1.0}]
    page = written(complete(examples={"best": [feature(contexts=contexts)], "median": [], "worst": []}))
    assert page.text["mark"] == ["↵\n↵\n"]
    assert "a↵\n↵\nb" in page.text["span"]


def test_required_parts_alone_make_a_page_that_says_what_is_missing(written: Callable[[dict[str, Any]], Page]) -> None:
    page = written(required())
    assert not page.all("svg") and not page.all("mark")
    assert page.words.count("not measured") == len(AIMS) - 1
    assert page.words.count("The build did not measure") == 10
    assert written(required() | {"loss": [], "validation": None}).words == page.words


@pytest.mark.parametrize(
    ("part", "plots"),
    [("loss", 4), ("frontier", 4), ("density", 4), ("validation", 3), ("readings", 5), ("examples", 5), ("data", 5)],
)
def test_each_part_can_be_missing(written: Callable[[dict[str, Any]], Page], part: str, plots: int) -> None:
    fields = complete()
    del fields[part]
    page = written(fields)
    assert page.words.count("The build did not measure") == (2 if part == "validation" else 1)
    assert len(page.all("svg")) == plots


def test_controls_can_be_missing(written: Callable[[dict[str, Any]], Page]) -> None:
    fields = complete()
    del fields["control_figures"], fields["control_loss"], fields["control_density"]
    del fields["validation"]["control_scores"]
    page = written(fields)
    assert len(page.all("svg")) == 5
    assert "twin" not in " ".join(page.text["text"])


@pytest.mark.parametrize("density", [[0.0, 0.0], [1.0], [1e-9, 0.5], [0.1]])
def test_degenerate_distributions_can_be_drawn(written: Callable[[dict[str, Any]], Page], density: list[float]) -> None:
    fields = complete(density=density, control_density=None, loss=[[0, 0.0]], control_loss=None)
    fields["validation"]["scores"] = {"precision": [1.0, 1.0], "recall": []}
    fields["validation"]["control_scores"] = {"recall": []}
    assert len(written(fields).all("svg")) == 4


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), None])
@pytest.mark.parametrize(
    "place",
    [
        lambda fields, value: fields["figures"].update(fvu=value),
        lambda fields, value: fields["control_figures"].update(fvu=value),
        lambda fields, value: fields["loss"].append([300, value]),
        lambda fields, value: fields["density"].append(value),
        lambda fields, value: fields["frontier"][0].update(fvu=value),
        lambda fields, value: fields["validation"]["scores"]["precision"].append(value),
        lambda fields, value: fields["validation"].update(live_share=value),
        lambda fields, value: fields["readings"].update(accuracy=value),
        lambda fields, value: fields["calibration"].update(precision=value),
        lambda fields, value: fields["examples"]["best"][0].update(precision=value),
        lambda fields, value: fields["examples"]["best"][0]["contexts"][0].update(activation=value),
    ],
)
def test_only_finite_numbers_are_figures(
    tmp_path: Path, place: Callable[[dict[str, Any], float | None], None], value: float | None
) -> None:
    fields = complete()
    place(fields, value)
    with pytest.raises(InputError, match=r"The build report for .* is wrong"):
        write_report(fields, tmp_path / "report")
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"created": "yesterday"},
        {"surprise": 1},
        {"figures": {"fvu": "0.05"}},
        {"control_figures": {"unknown": 1.0}},
        {"density": [1.5]},
        {"loss": [[0, -0.1]]},
        {"loss": [[-1, 0.1]]},
        {"frontier": [{"label": "no other field"}]},
        {"examples": {"best": [feature(contexts=[{"text": "abc", "start": 2, "end": 4, "activation": 1.0}])]}},
        {"data": [{"name": "chats", "licence": "CC0", "tokens": -1}]},
    ],
)
def test_wrong_fields_are_refused_and_an_old_report_stays(tmp_path: Path, changes: dict[str, Any]) -> None:
    (tmp_path / REPORT_PAGE_FILE).write_text("old", "utf-8")
    with pytest.raises(InputError) as caught:
        write_report(complete(**changes), tmp_path)
    assert caught.value.remedy
    assert {path.name: path.read_text("utf-8") for path in tmp_path.iterdir()} == {REPORT_PAGE_FILE: "old"}


def test_controls_need_a_counterpart(tmp_path: Path) -> None:
    fields = complete()
    fields["validation"]["control_scores"] = {"recall": [0.1]}
    with pytest.raises(InputError, match="control_scores has recall, which scores has not"):
        write_report(fields, tmp_path)


def test_a_report_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / REPORT_JSON_FILE).write_text("old", "utf-8")

    def fail(report: Any) -> str:
        raise RuntimeError("no plots today")

    monkeypatch.setattr(report_module, "render_page", fail)
    with pytest.raises(RuntimeError):
        write_report(complete(), tmp_path)
    assert {path.name: path.read_text("utf-8") for path in tmp_path.iterdir()} == {REPORT_JSON_FILE: "old"}
