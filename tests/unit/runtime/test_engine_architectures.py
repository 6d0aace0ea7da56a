"""Engine, chat encoder, fingerprint and splice on tiny models of five architectures, against transformers itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import ARCHITECTURES, GEMMA_WINDOW, HIDDEN, LAYERS, VOCABULARY, make_model, reconfigure, sentences
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    T5Config,
    T5Model,
)

from sae_runtime.build.metrics import cross_entropy_figures
from sae_runtime.engines.chat import ChatEncoder, ChatMessage
from sae_runtime.engines.transformers import TransformersEngine, decoder_layers
from sae_runtime.errors import EngineError
from sae_runtime.models import ResolvedModel, fingerprint_model
from sae_runtime.sae import SAE, ReLUSAE

LENGTHS = (1, 40, 7, 23)  # beyond the sliding window of eight tokens, too
Folder = Callable[[str], Path]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Any:
    """Threads only wait for each other in models as small as these."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """The model of an architecture, made once; tests do not change it."""
    made: dict[str, Path] = {}

    def get(architecture: str) -> Path:
        if architecture not in made:
            made[architecture] = make_model(tmp_path_factory.mktemp("models") / architecture, architecture)
        return made[architecture]

    return get


def sequences() -> list[list[int]]:
    """Token sequences of different lengths, in no order."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(7, VOCABULARY, (length,), generator=generator).tolist() for length in LENGTHS]


@torch.inference_mode()
def full_forward(folder: Path, ids: list[int]) -> tuple[tuple[Tensor, ...], Tensor]:
    """Hidden states of the whole model (index 0: embeddings; the last one is normalised), and its logits."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    output = model(input_ids=torch.tensor([ids]), output_hidden_states=True)
    return tuple(state[0] for state in output.hidden_states), output.logits[0]


@torch.inference_mode()
def final_norm(folder: Path, residual: Tensor) -> Tensor:
    """What the model makes of its last layer's output."""
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    name = {"gpt2": "ln_f", "gpt_neox": "final_layer_norm"}.get(folder.name, "norm")
    return getattr(model, name)(residual)


def identity_sae() -> SAE:
    """An SAE that reconstructs exactly: one latent for the positive and one for the negative part of each dimension."""
    both = torch.cat([torch.eye(HIDDEN), -torch.eye(HIDDEN)])
    return ReLUSAE(
        {"W_enc": both.T.contiguous(), "W_dec": both, "b_enc": torch.zeros(2 * HIDDEN), "b_dec": torch.zeros(HIDDEN)}
    )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("layer", range(LAYERS))
def test_the_stream_is_that_of_the_whole_model_alone_and_padded(folder: Folder, architecture: str, layer: int) -> None:
    engine = TransformersEngine(folder(architecture), layer)
    assert (engine.d_model, len(decoder_layers(engine._model))) == (HIDDEN, layer + 1)
    for together, ids in zip(engine.residual(sequences()), sequences(), strict=True):
        alone = engine.residual([ids])[0]
        expected = full_forward(folder(architecture), ids)[0][layer + 1]
        assert together.shape == alone.shape == (len(ids), HIDDEN)
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
        if layer == LAYERS - 1:
            alone = final_norm(folder(architecture), alone)
        torch.testing.assert_close(alone, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_later_tokens_do_not_change_earlier_ones(folder: Folder, architecture: str) -> None:
    engine = TransformersEngine(folder(architecture), LAYERS - 1)
    ids = sequences()[1]
    whole = engine.residual([ids])[0]
    torch.testing.assert_close(engine.residual([ids[:20]])[0], whole[:20], rtol=1e-4, atol=1e-5)
    other = engine.residual([[*ids[:20], *reversed(ids[20:])]])[0]
    assert (other[20:] - whole[20:]).abs().max() > 0.1


def test_a_sliding_window_hides_what_lies_before_it(folder: Folder, tmp_path: Path) -> None:
    wide = make_model(tmp_path / "gemma3", "gemma3", sliding_window=64)
    ids = sequences()[1]
    narrow = TransformersEngine(folder("gemma3"), 0).residual([ids])[0]  # layer 0 slides
    difference = (narrow - TransformersEngine(wide, 0).residual([ids])[0]).abs().amax(1)
    assert difference[:GEMMA_WINDOW].max() < 1e-5
    assert difference[GEMMA_WINDOW:].min() > 1e-3


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_exact_dictionary_loses_nothing_in_the_splice(folder: Folder, architecture: str) -> None:
    texts = [ids for ids in sequences() if len(ids) > 1]
    model = ResolvedModel(architecture, folder(architecture))
    figures = cross_entropy_figures(model, 1, identity_sae(), texts)
    losses = [
        torch.nn.functional.cross_entropy(full_forward(model.path, ids)[1][:-1], torch.tensor(ids[1:]), reduction="sum")
        for ids in texts
    ]
    tokens = sum(len(ids) - 1 for ids in texts)
    assert figures["ce_tokens"] == tokens
    assert figures["ce_clean"] == pytest.approx(sum(losses).item() / tokens, abs=1e-4)
    assert figures["ce_delta"] == pytest.approx(0, abs=1e-4)
    assert figures["ce_recovered"] is None or figures["ce_recovered"] == pytest.approx(1, abs=0.01)


def test_a_poor_dictionary_shows_in_the_splice(folder: Folder) -> None:
    sae = identity_sae()
    sae.weights["W_dec"] = sae.weights["W_dec"].flip(1)  # every dimension ends up in another one's place
    model = ResolvedModel("llama", folder("llama"))
    figures = cross_entropy_figures(model, 1, sae, [sequences()[1]])
    assert figures["ce_delta"] is not None and abs(figures["ce_delta"]) > 0.05


@pytest.mark.parametrize(
    ("architecture", "settings"),
    [
        ("llama", {"rms_norm_eps": 0.1}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 4, "layer_types": ["sliding_attention"] * LAYERS}),
        ("gpt2", {"n_head": 2}),
        ("gpt2", {"activation_function": "relu"}),
        ("gpt2", {"layer_norm_epsilon": 0.1}),
        ("gpt_neox", {"use_parallel_residual": False}),
        ("gpt_neox", {"layer_norm_eps": 0.1}),
        ("gpt_neox", {"rope_parameters": {"rope_theta": 1e4, "rope_type": "default", "partial_rotary_factor": 0.5}}),
        ("gemma3", {"query_pre_attn_scalar": 64}),
        ("gemma3", {"hidden_activation": "relu"}),
        ("gemma3", {"layer_types": ["full_attention"] * LAYERS}),
        ("gemma3", {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e6},
                                        "sliding_attention": {"rope_type": "default", "rope_theta": 50.0}}}),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else value,
)  # fmt: skip
def test_a_setting_that_changes_the_stream_changes_the_fingerprint(
    folder: Folder, tmp_path: Path, architecture: str, settings: dict[str, Any]
) -> None:
    changed = make_model(tmp_path / architecture, architecture)
    assert fingerprint_model(changed) == fingerprint_model(folder(architecture))
    reconfigure(changed, **settings)
    ids = sequences()[1]
    before, after = (TransformersEngine(path, 1).residual([ids])[0] for path in (folder(architecture), changed))
    assert (before - after).abs().max() > 1e-3
    assert fingerprint_model(folder(architecture)).differences(fingerprint_model(changed)) == ["config"]


def test_settings_of_a_text_decoder_inside_a_larger_model_are_in_its_fingerprint(tmp_path: Path) -> None:
    model = make_model(tmp_path / "gemma3", "gemma3")
    text = json.loads((model / "config.json").read_text("utf-8"))
    (model / "config.json").write_text(json.dumps({"model_type": "gemma3", "text_config": text}), "utf-8")
    before = fingerprint_model(model)
    reconfigure(model, text_config=text | {"sliding_window": 4})
    assert before.differences(fingerprint_model(model)) == ["config"]


def test_a_vision_tower_with_as_many_layers_is_not_taken_for_the_decoder(folder: Folder) -> None:
    text = AutoConfig.from_pretrained(folder("gemma3"))
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    config = Gemma3Config(
        text_config=text.to_dict(), vision_config=sizes | {"num_hidden_layers": LAYERS}, mm_tokens_per_image=4,
        image_token_id=7, boi_token_index=8, eoi_token_index=9,
    )  # fmt: skip
    model = Gemma3ForConditionalGeneration(config)
    found = decoder_layers(model)
    assert len(found) == LAYERS
    assert all(type(layer).__name__ == "Gemma3DecoderLayer" for layer in found)


def test_a_model_that_encodes_its_prompt_is_refused() -> None:
    model = T5Model(T5Config(d_model=16, d_kv=4, d_ff=16, num_layers=2, num_heads=2, vocab_size=32))
    with pytest.raises(EngineError, match="has an encoder"):
        decoder_layers(model)


@pytest.mark.parametrize("architecture", [name for name, made in ARCHITECTURES.items() if made.template])
def test_spans_rebuild_every_message_of_a_conversation(folder: Folder, architecture: str) -> None:
    encoder = ChatEncoder(folder(architecture))
    contents = ["Be brief. \n", "\n How many coins? ", "Nine.", "And  ropes?\n"]
    roles = ["system", "user", "assistant", "user"]
    messages: list[ChatMessage] = [{"role": role, "content": text} for role, text in zip(roles, contents, strict=True)]
    encoded = encoder.encode(messages)
    # Gemma's template strips all but the system message.
    kept = [contents[0], *map(str.strip, contents[1:])] if architecture == "gemma3" else contents
    for index, (content, left) in enumerate(zip(contents, kept, strict=True)):
        spans = [span for span in encoded.spans if span.message == index]
        assert "".join(content[span.start : span.end] for span in spans) == left
    assert (encoded.token_ids[0] == encoder.tokenizer.bos_token_id) == (architecture == "gemma3")
    assert encoded.token_ids.count(encoder.tokenizer.bos_token_id) == (architecture == "gemma3")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_base_model_reads_the_text_behind_its_own_first_token(tmp_path: Path, architecture: str) -> None:
    """As such models were trained: Llama and Gemma behind ``<bos>``, the others without it."""
    encoder = ChatEncoder(make_model(tmp_path / architecture, architecture, chat=False))
    text = sentences(1, seed=1)[0]
    encoded = encoder.encode([{"role": "user", "content": text}])
    first = [encoder.tokenizer.bos_token_id] if ARCHITECTURES[architecture].bos else []
    assert encoded.token_ids == [*first, *encoder.encode_text(text)] == encoder.tokenizer(text)["input_ids"]
    assert "".join(text[span.start : span.end] for span in encoded.spans if span.message == 0) == text
    assert [span.message for span in encoded.spans[: len(first)]] == [None] * len(first)
