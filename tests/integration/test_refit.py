"""``sensecheck build concepts`` on a tiny model's whole build: concepts change, dictionary and features do not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from sqlalchemy import delete, select
from sqlalchemy.orm import Session
from tiny_builds import CONCEPTS, cache, make_corpus, make_pack, one_thread, write_config
from tiny_models import make_model
from typer.testing import CliRunner

from sae_runtime.build.config import load_config
from sae_runtime.build.pipeline import run_build
from sae_runtime.build.refit import refit
from sae_runtime.catalog.store import catalog_engine, open_catalog, seal_catalog
from sae_runtime.catalog.tables import BuildRow, ConceptRow, FeatureRow, NoteRow, SenseRow
from sae_runtime.detector import Inspector
from sae_runtime.engines.transformers import TransformersEngine
from sae_runtime.errors import ArtefactError, InputError
from sae_runtime.paths import PACKS
from sae_runtime.sae.fingerprint import fingerprint_sae
from ui.cli.app import app

ANOTHER = "odd"


@dataclass(frozen=True)
class Built:
    """A finished build: model, pack, artefacts and card."""

    model: str
    pack: Path
    out: Path
    card: dict[str, Any]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Built]:
    """One tiny build, in a cache of its own."""
    folder = tmp_path_factory.mktemp("refit")
    (folder / "corpus").mkdir()
    corpus, pack, model = (
        make_corpus(folder / "corpus"),
        make_pack(folder / "pack"),
        make_model(folder / "tiny", "llama"),
    )
    config = write_config(folder / "build.yaml", model, corpus, pack)
    with cache(folder / "home"), one_thread():
        card = run_build(load_config(str(config)), out=folder / "artefacts")
        assert card is not None
        yield Built(str(model), pack, folder / "artefacts", card)


def rows(artefacts: Path) -> dict[str, Any]:
    """What a catalog holds: features without what concepts decide of them, readouts, notes by concept and sense."""
    with open_catalog(artefacts / "catalog.sqlite") as session:
        features = [
            (row.index, row.label, row.description, row.density, [example.text for example in row.examples])
            for row in session.scalars(select(FeatureRow).order_by(FeatureRow.index))
        ]
        senses = {
            (concept.slug, sense.slug): sense
            for concept in session.scalars(select(ConceptRow))
            for sense in concept.senses
        }
        return {
            "features": features,
            "readouts": {
                name: {weight.feature.index: weight.weight for weight in sense.signature.weights}
                for name, sense in senses.items()
            },
            "notes": {name: (sense.notes[0].wording, sense.notes[0].lift) for name, sense in senses.items()},
            "builds": [row.config["concepts"]["packs"] for row in session.scalars(select(BuildRow))],
        }


def test_concepts_are_fitted_anew_without_the_corpus_and_the_same_again(
    built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = refit(built.model, artefacts=built.out, out=tmp_path / "first")
    before, after = rows(built.out), rows(tmp_path / "first")
    assert after["features"] == before["features"]
    assert after["readouts"].keys() == before["readouts"].keys()
    assert after["builds"] == [*before["builds"], [str(built.pack)]]
    assert fingerprint_sae(tmp_path / "first") == built.card["fingerprint"]
    # The published dictionary is rounded to bfloat16; it reads nearly what the build's own did.
    assert card["reading_accuracy"] == pytest.approx(built.card["reading_accuracy"], abs=0.15)
    assert card["reading_accuracy_dense_probe"] == pytest.approx(built.card["reading_accuracy_dense_probe"], abs=0.05)
    assert card.keys() == built.card.keys()
    assert card["command"] == f"{built.card['command']} && sensecheck build concepts tiny"
    report = json.loads((tmp_path / "first" / "report.json").read_text("utf-8"))
    assert report["readings"]["reading_accuracy"] == card["reading_accuracy"]
    assert report["calibration"] == pytest.approx(card["calibration"])
    assert "build concepts" in (tmp_path / "first" / "report.html").read_text("utf-8")
    reading = Inspector.from_model(built.model, artefacts=tmp_path / "first").inspect(
        [{"role": "user", "content": "What is the sum of two and forty?"}]
    )
    assert [mention.concept for mention in reading.mentions] == ["sum"]
    monkeypatch.setattr("sae_runtime.build.refit.TransformersEngine", None)  # the sentences are not read again
    again = refit(built.model, artefacts=tmp_path / "first", out=tmp_path / "second")
    assert again == card
    assert rows(tmp_path / "second")["readouts"] == after["readouts"]


def test_a_concept_is_added_changed_and_left_out(built: Built, tmp_path: Path) -> None:
    """In place, as someone who writes concepts does it; notes that were tried stay so unless their concept changed."""
    artefacts = shutil.copytree(built.out, tmp_path / "artefacts")
    _try_notes(artefacts)
    pack = shutil.copytree(built.pack, tmp_path / "pack")
    kept = refit(built.model, artefacts=artefacts)
    assert kept["notes"] == {"notes": 8}
    assert set(rows(artefacts)["notes"].values()) == {("gloss", 0.5)}
    shutil.copy(PACKS / "arithmetic" / f"{ANOTHER}.yaml", pack)
    (pack / "mean.yaml").unlink()
    changed = yaml.safe_load((pack / "sum.yaml").read_text("utf-8"))
    sense = next(iter(changed["senses"].values()))
    sense["contexts"][0] = "The [sum] of all our worries was small."
    (pack / "sum.yaml").write_text(yaml.safe_dump(changed), "utf-8")
    card = refit(built.model, artefacts=artefacts, packs=[str(pack)])
    assert "notes" not in card  # they were tried with other concepts
    notes = rows(artefacts)["notes"]
    assert {concept for concept, _ in notes} == {*CONCEPTS, ANOTHER} - {"mean"}
    fresh = {concept for (concept, _), (wording, lift) in notes.items() if (wording, lift) == ("pack", None)}
    assert fresh == {"sum", ANOTHER}
    assert card["concepts"] == len(CONCEPTS)
    reading = Inspector.from_model(built.model, artefacts=artefacts).inspect(
        [{"role": "user", "content": "Is 77 an odd number?"}]
    )
    assert [mention.concept for mention in reading.mentions] == [ANOTHER]


def _try_notes(artefacts: Path) -> None:
    """As if ``sensecheck eval notes --write`` had chosen the wording *gloss* everywhere."""
    engine = catalog_engine(artefacts / "catalog.sqlite", writable=True)
    with Session(engine) as session, session.begin():
        for note, gloss in session.execute(select(NoteRow, SenseRow.gloss).join(SenseRow)):
            note.text, note.wording, note.lift, note.trials = f'Here "{{mention}}" means: {gloss}.', "gloss", 0.5, 4
    engine.dispose()
    seal_catalog(artefacts / "catalog.sqlite")
    card = json.loads((artefacts / "card.json").read_text("utf-8"))
    (artefacts / "card.json").write_text(json.dumps(card | {"notes": {"notes": 8}}), "utf-8")


def test_the_command_says_what_it_made(built: Built, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = CliRunner().invoke(
        app,
        [
            "build",
            "concepts",
            built.model,
            "--artefacts",
            str(built.out),
            "--out",
            str(out),
            "--packs",
            str(built.pack),
        ],
    )
    assert result.exit_code == 0, result.output
    assert "reading accuracy" in result.output
    assert rows(out)["builds"][-1] == [str(built.pack)]


def test_what_stands_in_the_way_is_told_before_anything_is_done(
    built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TransformersEngine, "residual", None)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("three years", "utf-8")
    with pytest.raises(InputError, match="holds other files"):
        refit(built.model, artefacts=built.out, out=tmp_path / "full")
    artefacts = shutil.copytree(built.out, tmp_path / "artefacts")
    engine = catalog_engine(artefacts / "catalog.sqlite", writable=True)
    with Session(engine) as session, session.begin():
        session.execute(delete(BuildRow))
    engine.dispose()
    seal_catalog(artefacts / "catalog.sqlite")
    with pytest.raises(ArtefactError, match="does not tell how it was built"):
        refit(built.model, artefacts=artefacts)
