"""What vLLM is started with, and what is said when it does not start."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest

from sae_runtime.engines.vllm.options import UNSUPPORTED, in_worker_arguments
from sae_runtime.errors import ServerError
from sae_runtime.models.manifest import SMALL_MODEL
from sae_runtime.models.resolve import ResolvedModel
from sae_runtime.paths import artefacts_for
from sae_runtime.serving.server import ModelServer, ServerOptions, _arguments, _ended, _environment, _Reading


def test_the_layer_is_counted_as_vllm_counts_it() -> None:
    arguments = in_worker_arguments(Path("artefacts"), 14, "a-channel", residual=True)
    options = dict(zip(arguments[::2], arguments[1::2], strict=True))
    speculative = json.loads(options["--speculative-config"])
    assert speculative["draft_model_config"]["hf_config"] == {"eagle_aux_hidden_state_layer_ids": [15]}
    transfer = json.loads(options["--kv-transfer-config"])
    settings = {"artefacts": "artefacts", "sae": None, "channel": "a-channel", "residual": True}
    assert transfer["kv_connector_extra_config"] == settings


@pytest.mark.parametrize("extra", [(), ("--block-size", "128"), ("--block-size=128",)])
def test_cache_blocks_are_small_on_a_cpu_unless_told_otherwise(
    extra: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    model = ResolvedModel(name=SMALL_MODEL, path=tmp_path)
    arguments = _arguments(model, ServerOptions(extra=extra), 1, _Reading([], {}))
    sizes = [value for option, value in pairwise(arguments) if option == "--block-size"]
    assert sizes == (["32"] if not extra else ["128"] if len(extra) == 2 else [])


def test_a_model_that_vllm_cannot_read_names_the_sidecar(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    log.write_text(f"RuntimeError: Model {UNSUPPORTED} but aux_hidden_state_outputs was requested\nmore")
    error = _ended(1, log)
    assert "--engine transformers" in error.remedy
    assert str(log) in error.remedy


def test_any_other_end_shows_the_end_of_the_log(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    log.write_text("first line\n" * 50 + "ValueError: no such option")
    error = _ended(1, log)
    assert "no such option" in str(error)
    assert str(error).count("first line") < 20


def test_missing_artefacts_are_refused_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resolved = ResolvedModel(name=SMALL_MODEL, path=tmp_path)
    monkeypatch.setattr("sae_runtime.serving.server.resolve_model", lambda model: resolved)
    with pytest.raises(ServerError, match="no artefacts folder"):
        ModelServer.start(SMALL_MODEL, ServerOptions(artefacts=tmp_path / "none"))
    assert artefacts_for(SMALL_MODEL).is_dir()


def test_the_key_is_in_the_environment_not_on_the_command_line(tmp_path: Path) -> None:
    options, reading = ServerOptions(api_key="sk-canary"), _Reading([], {})
    assert not any(
        "canary" in argument for argument in _arguments(ResolvedModel(name="m", path=tmp_path), options, 1, reading)
    )
    assert _environment(options, reading)["VLLM_API_KEY"] == "sk-canary"
    assert "canary" not in repr(options)
