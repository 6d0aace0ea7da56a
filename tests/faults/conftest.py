"""Fixtures of the fault tests: a private cache, a tiny model and its artefacts, readings without patience."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from faults.builds import WholeBuild
from faults.making import make_artefacts
from tiny_models import make_model

from sae_runtime.serving import reload


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama."""
    return make_model(tmp_path_factory.mktemp("model") / "llama", "llama")


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache for all fault tests, so that the tiny model's fingerprint is computed once."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(autouse=True)
def private_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test reads or writes the user's own cache."""
    monkeypatch.setenv("SENSECHECK_HOME", str(cache))
    monkeypatch.delenv("SENSECHECK_CORPUS", raising=False)
    return cache


@pytest.fixture(scope="session")
def _made(tiny: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SENSECHECK_HOME", str(cache))
        return make_artefacts(tmp_path_factory.mktemp("made") / "artefacts", tiny)


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> WholeBuild:
    """A tiny build that nobody disturbed."""
    return WholeBuild.make(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def artefacts(_made: Path, tmp_path: Path) -> Path:
    """The tiny model's artefacts, a copy for this test; the note says "First."."""
    return shutil.copytree(_made, tmp_path / "artefacts")


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at the catalog's file at every reading, and try a refused one again at once."""
    monkeypatch.setattr(reload, "CHECK_SECONDS", 0.0)
    monkeypatch.setattr(reload, "RETRY_SECONDS", 0.0)
