"""The whole build on tiny models of five architectures: their own text, tokenizer and weights, nothing downloaded."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from sqlalchemy import select
from tiny_builds import (
    BATCH,
    CONCEPTS,
    EPOCHS,
    LAYER,
    WIDTH,
    K,
    cache,
    make_corpus,
    make_pack,
    one_thread,
    results,
    write_config,
)
from tiny_models import ARCHITECTURES, HIDDEN, VOCABULARY, make_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from sae_runtime.build.config import load_config
from sae_runtime.build.pipeline import run_build
from sae_runtime.catalog.packs import load_concept
from sae_runtime.catalog.store import open_catalog
from sae_runtime.catalog.tables import FeatureRow
from sae_runtime.detector import Inspector
from sae_runtime.engines.transformers import TransformersEngine
from sae_runtime.errors import FingerprintError, InputError
from sae_runtime.evaluation.prompts import calibration_prompts
from sae_runtime.models import fingerprint_model
from sae_runtime.sae import load_sae
from sae_runtime.sae.fingerprint import fingerprint_sae

PROMPT = "The farmer sold seven boxes in the market. What is the sum of two and forty?"


@dataclass(frozen=True)
class Build:
    """A build that ran to its end: the model, its YAML file, the cache it ran in, artefacts and card."""

    architecture: str
    model: Path
    config: Path
    home: Path
    out: Path
    card: dict[str, Any]


@pytest.fixture(scope="module", autouse=True)
def alone() -> Iterator[None]:
    """See :func:`one_thread`."""
    with one_thread():
        yield


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """See :func:`make_corpus`."""
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """See :func:`make_pack`."""
    return make_pack(tmp_path_factory.mktemp("packs") / "few")


@pytest.fixture(scope="module", params=ARCHITECTURES)
def build(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, corpus: Path, pack: Path
) -> Iterator[Build]:
    """One architecture's model and artefacts; the tests of one architecture run one after the other."""
    folder = tmp_path_factory.mktemp(request.param)
    model = make_model(folder / request.param, request.param)
    config = write_config(folder / "build.yaml", model, corpus, pack)
    with cache(folder / "home"):
        card = run_build(load_config(str(config)), out=folder / "artefacts")
        assert card is not None
        yield Build(request.param, model, config, folder / "home", folder / "artefacts", card)


def test_the_card_says_what_was_built_and_how_good_it_is(build: Build) -> None:
    card = build.card
    assert (card["model"], card["layer"]) == (build.architecture, LAYER)
    assert (card["d_in"], card["d_sae"]) == (HIDDEN, WIDTH)
    assert json.loads((build.out / "card.json").read_text("utf-8")) == json.loads(json.dumps(card))
    # The dictionary: better than the mean by far, about as sparse as wanted, on text that it was not trained on.
    assert 0 < card["fvu"] < 0.4
    assert card["l0_mean"] == pytest.approx(K, rel=0.25)
    assert card["l0_fraction"] == pytest.approx(card["l0_mean"] / WIDTH, abs=1e-4)
    assert 0 <= card["dead_fraction"] < 0.3
    assert card["tokens_distinct"] > 15_000
    assert 0 < card["tokens_trained"] <= EPOCHS * card["tokens_distinct"]
    assert card["tokens_trained"] % BATCH == 0
    # A model that has learned nothing predicts about as well as chance, spliced or not.
    assert card["ce_tokens"] > 500
    assert 0.5 * math.log(VOCABULARY) < card["ce_clean"] < 3 * math.log(VOCABULARY)
    assert abs(card["ce_delta"]) < card["ce_clean"]


def test_the_catalog_belongs_to_the_model_and_to_the_dictionary(build: Build) -> None:
    view = Inspector.from_model(str(build.model), artefacts=build.out).view
    assert (view.model_name, view.layer) == (build.architecture, LAYER)
    assert view.model == fingerprint_model(build.model)
    assert view.sae_fingerprint == fingerprint_sae(build.out) == build.card["fingerprint"]
    assert {concept.slug for concept in view.concepts} == set(CONCEPTS)
    assert len(view.features) == build.card["latents_shipped"] <= WIDTH
    assert list(view.features) == load_sae(build.out).latents
    for concept in view.concepts:
        for sense in concept.senses:
            assert sense.weights.keys() <= view.features.keys()
            assert all(math.isfinite(weight) for weight in [sense.bias, *sense.weights.values()])
    described = [feature for feature in view.features.values() if feature.label]
    assert len(described) == len(view.features)


def test_a_model_with_other_weights_is_refused(build: Build, tmp_path: Path) -> None:
    other = make_model(tmp_path / build.architecture, build.architecture, seed=1)
    with pytest.raises(FingerprintError, match="weights differ"):
        Inspector.from_model(str(other), artefacts=build.out)


def test_a_prompt_is_read_as_the_whole_model_sees_it(build: Build) -> None:
    """Every token has a row, and its features are those of the full model's hidden state."""
    reading = Inspector.from_model(str(build.model), artefacts=build.out).inspect([{"role": "user", "content": PROMPT}])
    ids = prompt_ids(build.model)
    model = AutoModelForCausalLM.from_pretrained(build.model, dtype=torch.float32).eval()
    with torch.inference_mode():
        state = model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states[LAYER + 1][0]
    sae = load_sae(build.out)
    expected = sae.encode(state)
    assert len(reading.tokens) == len(ids) == len(expected)
    assert "".join(PROMPT[t.start : t.end] for t in reading.tokens if t.message == 0) == PROMPT
    assert reading.tokens[0].features == []  # an attention sink
    places = {latent: column for column, latent in enumerate(sae.latents)}
    for token, row in zip(reading.tokens[1:], expected[1:], strict=True):
        found = [feature.activation for feature in token.features]
        assert found == pytest.approx(row.topk(len(found)).values.tolist(), abs=2e-3)
        assert found == pytest.approx([row[places[feature.index]].item() for feature in token.features], abs=2e-3)
        assert len(found) == min(6, int((row > 0).sum())) or row.topk(6).values[-1] < 2e-3
    assert sum(bool(token.features) for token in reading.tokens) > 0.8 * len(ids)
    (mention,) = reading.mentions
    assert (mention.concept, mention.text) == ("sum", "sum")
    for probabilities in (mention.reading, mention.intended):
        assert sum(probabilities.values()) == pytest.approx(1, abs=1e-3)
        assert all(0 <= probability <= 1 for probability in probabilities.values())


def test_readings_do_as_well_as_the_card_says(build: Build, pack: Path) -> None:
    """Held-out sentences, read as a user's prompt with the published artefacts."""
    inspector = Inspector.from_model(str(build.model), artefacts=build.out)
    accuracies = {concept.slug: concept.accuracy for concept in inspector.view.concepts}
    concepts = [load_concept(pack / f"{name}.yaml") for name in CONCEPTS]
    for concept in concepts:
        right = []
        for name, sense in concept.senses.items():
            for context in sense.labelled(held_out=True):
                mentions = inspector.inspect([{"role": "user", "content": context.text}]).mentions
                reading = next(m.reading for m in mentions if (m.concept, m.start) == (concept.concept, context.start))
                right.append(max(reading, key=reading.__getitem__) == name)
        # The build kept the features of these sentences in half precision, which may tip one that stands at the edge.
        assert accuracies[concept.concept] == pytest.approx(sum(right) / len(right), abs=1.5 / len(right))
    card = build.card
    assert card["reading_accuracy"] == pytest.approx(sum(accuracies.values()) / len(accuracies), abs=1e-3)
    assert 0 < card["reading_accuracy_dense_probe"] <= 1
    assert (card["concepts"], card["senses"]) == (len(concepts), sum(len(concept.senses) for concept in concepts))
    assert sum(card["reading_sites"].values()) == len(concepts)
    assert card["calibration"]["prompts"] == sum(prompt.concept in CONCEPTS for prompt in calibration_prompts())


def prompt_ids(model: Path) -> list[int]:
    """:data:`PROMPT` as the model gets it, by transformers alone."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    if tokenizer.chat_template is None:
        return tokenizer(PROMPT)["input_ids"]
    messages = [{"role": "user", "content": PROMPT}]
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]


def test_a_second_build_does_nothing_again(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    before = stamps(build.home)
    assert len(before) > 20
    monkeypatch.setattr(TransformersEngine, "residual", None)  # the model is not run again
    assert run_build(load_config(str(build.config)), out=build.out, until="concepts") is None
    assert stamps(build.home) == before


@pytest.mark.parametrize("build", ["llama"], indirect=True)
def test_a_stage_can_be_done_anew_with_those_after_it(build: Build) -> None:
    before = stamps(build.home)
    run_build(load_config(str(build.config)), out=build.out, start="validate", until="validate")
    after = stamps(build.home)
    redone = {Path(path).parent.name.rpartition("-")[0] for path in after if after[path] != before.get(path)}
    assert redone == {"again", "control-harvest", "control-train", "control-describe", "validate"}
    # Contexts stand behind the stage that was named, so they are made again by the next whole build.
    assert not any("contexts-" in path for path in after)
    assert run_build(load_config(str(build.config)), out=build.out) == build.card


@pytest.mark.parametrize("build", ["llama"], indirect=True)
def test_a_build_that_the_disk_cannot_hold_does_not_begin(
    build: Build, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("sae_runtime.build.pipeline.free_bytes", lambda: 1_000)
    with cache(tmp_path), pytest.raises(InputError, match=r"the disk of .* has 0\.00 GB"):
        run_build(load_config(str(build.config)), out=tmp_path / "artefacts")
    assert not list(tmp_path.glob("builds/*/*/*"))
    assert run_build(load_config(str(build.config)), out=build.out, until="concepts") is None  # nothing to write


@pytest.mark.parametrize("build", ["llama"], indirect=True)
def test_a_dictionary_of_others_takes_the_place_of_training(build: Build, tmp_path: Path) -> None:
    (trained,) = build.home.glob("builds/*/train-*")
    taken = shutil.copytree(trained, tmp_path / "theirs")
    config = load_config(str(build.config), sae=str(taken))
    card = run_build(config, out=tmp_path / "artefacts")
    assert card is not None
    assert card["fvu"] == build.card["fvu"]
    assert card["reading_accuracy"] == build.card["reading_accuracy"]
    other = json.loads((taken / "cfg.json").read_text())
    other["metadata"]["hook_name"] = "blocks.2.hook_resid_post"
    (taken / "cfg.json").write_text(json.dumps(other))
    with pytest.raises(InputError, match=r"belongs to blocks\.2"):
        run_build(config, out=tmp_path / "more")
    with pytest.raises(InputError, match="no SAE folder"):
        run_build(load_config(str(build.config), sae="nowhere"), out=tmp_path / "more")


@pytest.mark.parametrize("build", ["llama"], indirect=True)
def test_a_language_model_may_write_the_sentences(build: Build, tmp_path: Path) -> None:
    asked = []

    def writer(prompt: str) -> str:
        asked.append(prompt)
        return "It fires on\n farm animals." if len(asked) % 2 else ""

    run_build(load_config(str(build.config)), out=tmp_path / "artefacts", writer=writer)
    with open_catalog(tmp_path / "artefacts" / "catalog.sqlite") as session:
        written = [row.description for row in session.scalars(select(FeatureRow).order_by(FeatureRow.index))]
    assert len(asked) == len(written)
    assert all("<<" in prompt for prompt in asked)
    assert set(written[::2]) == {"It fires on farm animals."}
    assert all(sentence.startswith(("Fires", "No rule")) for sentence in written[1::2])


class Killed(BaseException):
    """Stands for the end of the process: nothing in the build catches it."""


@pytest.mark.parametrize("build", ["gemma3"], indirect=True)
def test_a_build_killed_twice_ends_with_the_same_files(build: Build, tmp_path: Path) -> None:
    home, out = tmp_path / "home", tmp_path / "artefacts"
    config = load_config(str(build.config))
    with cache(home):
        shard = die_when(home, "harvest-*/train-*.safetensors", 1, config, out)[0]
        (shard.parent / ".validation-0000.safetensors.partial").write_bytes(b"half a file")
        contexts = die_when(home, "contexts-*/*.safetensors", 3, config, out)
        survivors = {path: path.stat().st_mtime_ns for path in [shard, *contexts]}
        assert not out.exists()
        run_build(config, out=out)
    assert {path: path.stat().st_mtime_ns for path in survivors} == survivors
    assert len(results(home)) > 20
    assert results(home) == results(build.home)
    assert fingerprint_sae(out) == fingerprint_sae(build.out)
    messages: Any = [{"role": "user", "content": PROMPT}]
    resumed, whole = (Inspector.from_model(str(build.model), artefacts=folder) for folder in (out, build.out))
    # The files differ by the moment of the build alone.
    views = [replace(one.view, fingerprint=None, concepts=tuple(one.view.concepts)) for one in (resumed, whole)]
    assert views[0] == views[1]
    assert resumed.inspect(messages).mentions == whole.inspect(messages).mentions


def die_when(home: Path, pattern: str, count: int, config: Any, out: Path) -> list[Path]:
    """Build until ``count`` files like ``pattern`` are there and the model is to be run again; returns those files."""
    run = TransformersEngine.residual

    def residual(engine: TransformersEngine, sequences: list[list[int]]) -> list[torch.Tensor]:
        if len(list(home.glob(f"builds/*/{pattern}"))) >= count:
            raise Killed
        return run(engine, sequences)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(TransformersEngine, "residual", residual)
        run_build(config, out=out)
    found = sorted(home.glob(f"builds/*/{pattern}"))
    assert len(found) == count
    assert not (found[0].parent / "done.json").exists()
    return found


def stamps(home: Path) -> dict[str, int]:
    """Modification times of all results of all stages."""
    return {str(path): path.stat().st_mtime_ns for path in home.glob("builds/*/**/*") if path.is_file()}
