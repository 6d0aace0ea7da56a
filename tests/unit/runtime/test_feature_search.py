"""Finding features by index, by words of the catalog and by direction, on the shipped small catalog and a hand-made one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_catalogs import filling

from sae_runtime.build.features.firings import histogram
from sae_runtime.catalog.location import CatalogLocation
from sae_runtime.catalog.search import nearest_features, search_features
from sae_runtime.catalog.tables import FeatureExampleRow, FeatureRow
from sae_runtime.catalog.view import CatalogView, feature_detail
from sae_runtime.errors import InputError
from sae_runtime.paths import CATALOG_FILE, artefacts_for
from sae_runtime.sae import SAE, ReLUSAE, load_sae

SHIPPED = artefacts_for("smollm2-135m-instruct")
BEST_FIRST = ("index", "label", "concept", "context")


@pytest.fixture(scope="module")
def sae() -> SAE:
    return load_sae(SHIPPED)


@pytest.fixture
def catalog(location: CatalogLocation) -> CatalogLocation:
    """Features whose labels and contexts hold wildcards, digits and one word in several places."""
    with filling(location) as (session, sae):

        def feature(index: int, label: str, text: str, *, validated: bool = False, description: str = "") -> FeatureRow:
            example = FeatureExampleRow(text=text, start=0, end=1, activation=1.0)
            return FeatureRow(
                sae_id=sae.id, index=index, label=label, validated=validated, description=description, density=0.1,
                max_activation=1.0, examples=[example],
            )  # fmt: skip

        session.add_all([
            feature(4, "100 % sure", "plain text"),
            feature(7, "Otters", "plain text", validated=True),
            feature(12, "snake_case", "an otter swims"),
            feature(34, "12 months", "plain text", description="Fires on otters."),
        ])  # fmt: skip
    return location


def found(location: CatalogLocation, query: str, limit: int = 30) -> list[tuple[int, str]]:
    return [(hit.index, hit.where) for hit in search_features(location, query, limit)]


def test_a_number_finds_that_index_before_labels_that_hold_it(catalog: CatalogLocation) -> None:
    assert found(catalog, " 12 ") == [(12, "index"), (34, "label")]


def test_labels_and_descriptions_come_before_contexts_and_validated_features_first(catalog: CatalogLocation) -> None:
    assert found(catalog, "OTTER") == [(7, "label"), (34, "label"), (12, "context")]


@pytest.mark.parametrize(("query", "index"), [("%", 4), ("_", 12), ("0 % s", 4)])
def test_wildcards_of_sql_stand_for_themselves(catalog: CatalogLocation, query: str, index: int) -> None:
    assert found(catalog, query) == [(index, "label")]


@pytest.mark.parametrize(
    "query", ["", "  ", "'; DROP TABLE features; --", "9" * 50, "\\", "/", "x" * 100_000, "\0", "t\0", "\ud800"]
)
def test_a_query_that_matches_nothing_finds_nothing(catalog: CatalogLocation, query: str) -> None:
    assert found(catalog, query) == []


def test_a_feature_is_found_once_and_the_limit_holds(catalog: CatalogLocation) -> None:
    assert found(catalog, "t") == [(7, "label"), (34, "label"), (4, "context"), (12, "context")]
    assert found(catalog, "t", limit=3) == found(catalog, "t")[:3]
    assert found(catalog, "t", limit=1) == [(7, "label")]


def test_a_concept_finds_the_features_that_its_signatures_read(shipped: CatalogLocation) -> None:
    idiom = next(concept for concept in CatalogView.load(shipped).concepts if concept.slug == "break_the_ice")
    assert idiom.early is not None
    read = {
        index for weights in (*(sense.weights for sense in idiom.senses), *idiom.early.weights) for index in weights
    }
    hits = search_features(shipped, "Break the Ice", limit=1_000)
    assert {hit.index for hit in hits if hit.where == "concept"} == read


@pytest.mark.parametrize("query", ["river", "BANK", "12", "%", "_", "n't", "é"])
def test_both_databases_find_the_same(shipped: CatalogLocation, query: str) -> None:
    assert search_features(shipped, query, limit=500) == search_features(SHIPPED / CATALOG_FILE, query, limit=500)


@pytest.mark.parametrize("query", ["river", "1", "bank"])
def test_hits_of_the_shipped_catalog_are_sorted_by_kind(shipped: CatalogLocation, query: str) -> None:
    places = [BEST_FIRST.index(hit.where) for hit in search_features(shipped, query, limit=200)]
    assert places
    assert places == sorted(places)


def test_a_hit_says_what_the_catalog_says(shipped: CatalogLocation) -> None:
    index, feature = next(iter(CatalogView.load(shipped).features.items()))
    hit = search_features(shipped, str(index))[0]
    assert (hit.index, hit.where, hit.label, hit.density) == (index, "index", feature.label, feature.density)


def test_the_nearest_features_are_those_with_the_largest_cosines(sae: SAE) -> None:
    index = sae.latents[17]
    directions = torch.nn.functional.normalize(sae.weights["W_dec"].float(), dim=1)
    cosines = dict(zip(sae.latents, (directions @ directions[17]).tolist(), strict=True))
    del cosines[index]
    expected = sorted(cosines, key=lambda other: -cosines[other])[:8]
    near = nearest_features(sae, index)
    assert [other for other, _ in near] == expected
    assert [cosine for _, cosine in near] == pytest.approx([cosines[other] for other in expected], abs=1e-5)


def test_nearest_features_leave_the_dictionary_as_it_was(sae: SAE) -> None:
    before = sae.weights["W_dec"].clone()
    nearest_features(sae, sae.latents[0])
    assert torch.equal(sae.weights["W_dec"], before)


def test_a_small_dictionary_has_fewer_neighbours_and_opposite_directions_come_last() -> None:
    weights = {"W_enc": torch.ones(2, 3), "b_enc": torch.zeros(3), "b_dec": torch.zeros(2),
               "W_dec": torch.tensor([[1.0, 0.0], [-2.0, 0.0], [3.0, 3.0]])}  # fmt: skip
    tiny = ReLUSAE(weights, {"sensecheck_latents": [5, 60, 700]})
    assert nearest_features(tiny, 5) == [(700, pytest.approx(0.5**0.5)), (60, pytest.approx(-1.0))]
    assert nearest_features(tiny.subset([1]), 60) == []


def test_a_feature_that_the_dictionary_does_not_hold_is_refused(sae: SAE) -> None:
    with pytest.raises(InputError, match="does not hold feature 1000000"):
        nearest_features(sae, 1_000_000)


def test_a_histogram_counts_every_activation_between_zero_and_the_strongest() -> None:
    values = np.array([0.05, 0.1, 1.9, 2.0, 2.5], dtype=np.float32)
    result = histogram(values, 2.0)
    assert result["edges"] == pytest.approx([n / 10 for n in range(21)])
    assert (sum(result["counts"]), result["counts"][0], result["counts"][-1]) == (5, 1, 3)


@pytest.mark.parametrize("model", ["smollm2-135m-instruct", "qwen2.5-coder-0.5b-instruct"])
def test_the_shipped_catalogs_have_a_histogram_of_each_feature_up_to_its_strongest_activation(model: str) -> None:
    location = artefacts_for(model) / CATALOG_FILE
    for index in list(CatalogView.load(location).features)[::400]:
        detail = feature_detail(location, index)
        assert detail is not None
        assert detail.histogram is not None
        assert len(detail.histogram["edges"]) == len(detail.histogram["counts"]) + 1 == 21
        assert detail.histogram["edges"][0] == 0
        assert detail.histogram["edges"][-1] == pytest.approx(detail.max_activation, rel=1e-4)
        assert sum(detail.histogram["counts"]) > 0


def test_a_feature_without_histogram_has_none(catalog: CatalogLocation) -> None:
    detail = feature_detail(catalog, 7)
    assert detail is not None
    assert detail.histogram is None
