"""The page of one feature as HTML: what it says, and that nothing of the catalog is taken for markup."""

from __future__ import annotations

import re
from typing import Any

import gradio as gr
import pytest

from sae_runtime.catalog.search import FeatureHit
from sae_runtime.catalog.view import CatalogView, FeatureDetail
from sae_runtime.paths import CATALOG_FILE, artefacts_for
from sae_runtime.sae import load_sae
from ui.features.tab import FeatureTab, feature_html, feature_tab, hits_html

EVIL = "<script>alert('x')</script>\"&"
SHIPPED = artefacts_for("smollm2-135m-instruct")


def example(activation: float, text: str = "by the river bank") -> dict[str, Any]:
    return {"text": text, "start": 7, "end": 12, "activation": activation}


def validation(split: str, **changes: Any) -> dict[str, Any]:
    return {
        "method": "description", "split": split, "samples": 1200, "predicted": 400, "precision": 0.75,
        "precision_low": 0.71, "precision_high": 0.79, "recall": 0.25, "balanced_accuracy": 0.62, **changes,
    }  # fmt: skip


def detail(**changes: Any) -> FeatureDetail:
    fields: dict[str, Any] = {
        "index": 1234, "label": "river", "validated": True, "description": "Fires on rivers.", "predicate": {},
        "promoted": ["stream", "bank"], "density": 0.00125, "max_activation": 9.0,
        "histogram": {"edges": [0.0, 3.0, 6.0, 9.0], "counts": [0, 40, 1]}, "seed_correlation": 0.81, "seed_cosine": 0.7,
        "sensitivity": None, "context_free": None, "sense_purity": 0.66, "examples": [example(9.0)],
        "validations": [validation("validation"), validation("test")], "concepts": ["bank", "break_the_ice"],
    }  # fmt: skip
    return FeatureDetail(**{**fields, **changes})


def hit(index: int, label: str, **changes: Any) -> FeatureHit:
    fields: dict[str, Any] = {"where": "label", "validated": False, "density": 0.1}
    return FeatureHit(index=index, label=label, **{**fields, **changes})


def row(page: str, name: str) -> str:
    """Text of the first row of a figure."""
    found = re.search(rf'<tr><th scope="row">{name}</th>(.*?)</tr>', page)
    assert found, name
    return re.sub(r"<[^>]+>", " ", found.group(1))


def test_the_heading_names_index_and_label_and_the_page_says_whether_it_is_validated() -> None:
    page = feature_html(detail(), [])
    assert "<h2>Feature 1234: river</h2>" in page
    assert "Fires on rivers." in page
    assert "Validated: its description passed all gates." in page
    assert "Not validated." in feature_html(detail(validated=False), [])


def test_nothing_of_the_catalog_is_taken_for_markup() -> None:
    page = feature_html(
        detail(
            label=EVIL, description=EVIL, promoted=[EVIL], concepts=[EVIL],
            examples=[{"text": EVIL * 3, "start": len(EVIL), "end": 2 * len(EVIL), "activation": 1.0}],
            validations=[validation(EVIL)],
        ),
        [(7, EVIL, 0.5)],
    )  # fmt: skip
    page += hits_html([hit(7, EVIL)])
    assert "<script" not in page
    assert "alert('x')" not in page
    assert "&lt;script&gt;" in page
    assert 'data-concept="&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt;&quot;&amp;"' in page


def test_a_histogram_is_drawn_with_a_name_and_one_bar_per_bin() -> None:
    page = feature_html(detail(), [])
    assert 'role="img" aria-label="Histogram of 41 activations from 0 to 9.00; the fullest bin holds 40 tokens"' in page
    heights = [float(height) for height in re.findall(r'<rect [^>]*height="([\d.]+)"', page)]
    assert heights[0] == 0
    assert heights[1] == max(heights)
    assert heights[2] >= 1  # rare, but seen
    assert not re.search(r"#[0-9a-fA-F]{3,6}\b|rgb\(", re.sub(r"&#\w+;", "", page))  # colours are the style sheet's


def test_a_missing_histogram_is_said_and_an_empty_one_is_drawn() -> None:
    page = feature_html(detail(histogram=None), [])
    assert "The activation histogram was not measured for this catalog." in page
    assert "<svg" not in page
    assert "<svg" in feature_html(detail(histogram={"edges": [0.0, 1.0], "counts": [0]}), [])


def test_contexts_stand_under_their_strength_with_the_firing_token_marked() -> None:
    page = feature_html(detail(examples=[example(9.0), example(6.0), example(5.9), example(3.0), example(2.9)]), [])
    strong, middle, weak = (page.index(f"<h4>{name}") for name in ("Strong", "Middle", "Weak"))
    places = [page.index(f'<span class="sc-hint">{activation}</span>') for activation in ("9.00", "6.00", "5.90", "3.00", "2.90")]  # fmt: skip
    assert [strong, *places[:2], middle, *places[2:4], weak, places[4]] == sorted([strong, middle, weak, *places])
    assert page.count("by the <mark>river</mark> bank") == 5


def test_strengths_without_contexts_are_left_out() -> None:
    page = feature_html(detail(examples=[example(9.0)]), [])
    assert "<h4>Strong" in page
    assert "<h4>Middle" not in page
    assert "No context was kept." in feature_html(detail(examples=[], max_activation=0.0), [])


def test_line_ends_in_a_context_are_visible_and_move_no_mark() -> None:
    page = feature_html(detail(examples=[{"text": "a\n\nb", "start": 1, "end": 3, "activation": 1.0}]), [])
    assert "a<mark>⏎⏎</mark>b" in page


def test_every_figure_has_a_value_and_says_how_it_was_obtained() -> None:
    page = feature_html(detail(), [])
    assert "0.125%" in row(page, "Density")
    assert "0.75 (0.71 to 0.79)" in row(page, "Precision")
    assert "Of the 400 tokens" in row(page, "Precision")
    assert "Of the 1,200 tokens" in row(page, "Recall")
    assert "0.62" in row(page, "Balanced accuracy")
    assert "0.81" in row(page, "Seed correlation")
    assert "not measured" in row(page, "Sensitivity")
    assert "validation split" in page
    assert "test split" in page
    rows = re.findall(r'<tr><th scope="row">.*?</th><td>(.*?)</td><td>(.*?)</td></tr>', page)
    assert all(value and how.endswith(".") for value, how in rows)
    assert len(rows) == 2 + 3 + 3 + 5


def test_scores_of_old_catalogs_have_no_interval_and_an_idle_description_no_scores() -> None:
    old = validation("validation", predicted=None, precision_low=None, precision_high=None)
    page = feature_html(detail(validations=[old]), [])
    assert row(page, "Precision").split("Of")[0].strip() == "0.75"
    assert "no description" in row(feature_html(detail(validations=[validation("test", predicted=0)]), []), "Scores")


def test_nearest_features_and_concepts_are_buttons() -> None:
    page = feature_html(detail(), [(7, "lake", 0.4321), (80, "sea", -0.1)])
    assert '<button type="button" class="sc-link" data-feature="7">7: lake</button>' in page
    assert "0.43" in page
    assert '<button type="button" class="sc-link" data-concept="break_the_ice">break the ice</button>' in page
    assert feature_html(detail(concepts=[]), []).count(">None.<") == 2


def test_promoted_tokens_are_chips() -> None:
    assert '<li class="sc-chip">stream</li>' in feature_html(detail(), [])


def test_hits_are_buttons_that_say_what_matched() -> None:
    page = hits_html([hit(7, "lake", where="index", validated=True), hit(80, "sea", where="context")])
    assert page.index('data-feature="7"') < page.index('data-feature="80"')
    assert "its index, validated" in page
    assert "a text on which it fires" in page
    assert "2 features" in page
    assert "No feature matches." in hits_html([])


@pytest.fixture(scope="module")
def blocks() -> tuple[gr.Blocks, FeatureTab]:
    labels = {index: feature.label for index, feature in CatalogView.load(SHIPPED / CATALOG_FILE).features.items()}
    with gr.Blocks() as page, gr.Tab("Features"):
        tab = feature_tab(SHIPPED / CATALOG_FILE, load_sae(SHIPPED), labels)
    return page, tab


async def fire(page: gr.Blocks, event: str, inputs: list[str], sent: Any = None) -> list[list[Any]]:
    """What each listener of ``event`` puts out, without a server or a browser."""
    listeners = [fn for fn in page.fns.values() if any(name == event for _, name in fn.targets)]
    data = gr.EventData(None, sent)
    return [(await page.process_api(fn, inputs, event_data=data, request=None))["data"] for fn in listeners]


def test_the_tab_shows_any_catalogued_feature_and_says_when_there_is_none(blocks: tuple[gr.Blocks, FeatureTab]) -> None:
    _, tab = blocks
    assert "<h2>Feature 5293: river" in tab.show(5293)
    assert tab.show(5293).count("data-feature=") == 8
    for unknown in (1, -1, 10**30):
        assert f"Feature {unknown} is not catalogued." in tab.show(unknown)
    assert (tab.page.elem_id, tab.search.elem_id) == ("sc-feature", "sc-feature-search")


async def test_typing_searches_and_enter_opens_the_best_hit(blocks: tuple[gr.Blocks, FeatureTab]) -> None:
    page, _ = blocks
    ((hits,),) = await fire(page, "change", ["5293"])
    assert 'data-feature="5293"' in hits
    ((hits, feature),) = await fire(page, "submit", ["5293"])
    assert 'data-feature="5293"' in hits
    assert "<h2>Feature 5293: river" in feature
    assert await fire(page, "change", [" "]) == [[""]]


async def test_a_click_opens_a_feature_from_hits_and_page_and_a_concept_is_searched_for(
    blocks: tuple[gr.Blocks, FeatureTab],
) -> None:
    page, _ = blocks
    opened = await fire(page, "pick", [], {"index": 5293})
    assert len(opened) == 2
    assert all("<h2>Feature 5293: river" in value for (value,) in opened)
    assert await fire(page, "concept", [], {"slug": "bank"}) == [["bank"]]


@pytest.mark.parametrize("sent", [None, {}, {"index": "5293"}, {"index": [1]}, {"index": None}, "5293"])
async def test_whatever_the_browser_sends_breaks_nothing(blocks: tuple[gr.Blocks, FeatureTab], sent: Any) -> None:
    assert all("Search for a word" in value for (value,) in await fire(blocks[0], "pick", [], sent))
