"""The transformers engine against a plain forward pass of the same model."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from sae_runtime.engines.chat import ChatEncoder
from sae_runtime.engines.features import content_mask
from sae_runtime.engines.transformers import TransformersEngine
from sae_runtime.errors import EngineError
from sae_runtime.models import resolve_model

pytestmark = pytest.mark.model
LAYER = 14


@pytest.fixture(scope="module")
def folder(small_model):
    return resolve_model(small_model).path


@pytest.fixture(scope="module")
def engine(folder):
    return TransformersEngine(folder, LAYER)


@pytest.fixture(scope="module")
def encoder(folder):
    return ChatEncoder(folder)


def test_residual_equals_the_hidden_states_of_a_full_forward(engine, encoder, folder):
    ids = encoder.encode([{"role": "user", "content": "The crane lifted a steel beam over the river."}]).token_ids
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        # hidden_states[0] is the embedding, so the stream after layer L is at L + 1
        expected = model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states[LAYER + 1][0]
    torch.testing.assert_close(engine.residual([ids])[0], expected, rtol=1e-4, atol=1e-3)


def test_no_layer_beyond_the_one_that_is_read_is_kept(engine):
    assert len(engine._model.layers) == LAYER + 1


def test_a_batch_gives_what_single_sequences_give(engine, encoder):
    texts = [
        "Short.",
        "A much longer sentence about a bass guitar and its four heavy strings.",
        "Middle length text here.",
    ]
    sequences = [encoder.encode([{"role": "user", "content": text}]).token_ids for text in texts]
    for together, ids in zip(engine.residual(sequences), sequences, strict=True):
        alone = engine.residual([ids])[0]
        assert together.shape == alone.shape == (len(ids), engine.d_model)
        similarity = torch.nn.functional.cosine_similarity(together, alone)
        assert similarity.min() > 0.9999


def test_the_first_token_is_an_attention_sink(engine, encoder):
    residual = engine.residual([encoder.encode([{"role": "user", "content": "What is a mole?"}]).token_ids])[0]
    norms = residual.norm(dim=-1)
    assert norms[0] > 10 * norms.median()
    assert not content_mask(residual)[0]
    assert content_mask(residual)[1:].all()


@pytest.mark.parametrize("sequences", [[], [[]], [[1] * 9000]])
def test_unreadable_sequences_are_typed_errors(engine, sequences):
    with pytest.raises(EngineError):
        engine.residual(sequences)


def test_a_layer_that_does_not_exist_is_a_typed_error(folder):
    with pytest.raises(EngineError, match="Layer 99"):
        TransformersEngine(folder, 99)


@pytest.mark.parametrize(
    "text", ["naïve café ☕️ 👩‍👩‍👧 family", "日本語のテキストと\ttabs", "user user <b>user</b>", "a\n\nb  c "]
)
def test_spans_of_the_real_tokenizer_rebuild_the_message(encoder, text):
    spans = encoder.encode([{"role": "system", "content": "user"}, {"role": "user", "content": text}]).spans
    covered = {place for span in spans if span.message == 1 for place in range(span.start, span.end)}
    assert covered == set(range(len(text)))


@pytest.mark.server
@pytest.mark.filterwarnings("ignore")  # vLLM's own, on import
def test_vllm_harvests_the_same_streams(engine, encoder, folder):
    from sae_runtime.build.vllm_engine import VLLMEngine

    texts = ["The crane lifted a steel beam.", "Short.", "A bank by the river, " * 12]
    sequences = [encoder.encode([{"role": "user", "content": text}]).token_ids for text in texts]
    served = VLLMEngine(folder, LAYER, dtype=torch.float32, context_length=256)
    try:
        found = served.residual(sequences)
    finally:
        served.close()
    for ids, stream, expected in zip(sequences, found, engine.residual(sequences), strict=True):
        assert stream.shape == (len(ids), engine.d_model)
        assert torch.nn.functional.cosine_similarity(stream, expected).min() > 0.999


def test_the_untrained_twin_has_the_same_shape_and_other_activations(engine, encoder, folder):
    ids = encoder.encode([{"role": "user", "content": "The crane lifted a steel beam."}]).token_ids
    twins = [TransformersEngine(folder, LAYER, random_seed=seed).residual([ids])[0] for seed in (0, 0, 1)]
    original = engine.residual([ids])[0]
    assert twins[0].shape == original.shape
    assert torch.equal(twins[0], twins[1])
    assert torch.nn.functional.cosine_similarity(twins[0], twins[2]).abs().mean() < 0.5
    assert torch.nn.functional.cosine_similarity(twins[0], original).abs().mean() < 0.5
