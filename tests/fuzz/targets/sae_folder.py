"""An SAE folder is an SAE that encodes, decodes and can be saved and read again, or an ArtefactError."""

from __future__ import annotations

import json
import shutil
from functools import cache
from typing import Any

import torch
from hypothesis import strategies as st

from sae_runtime.engines.features import encode_prompt
from sae_runtime.errors import ArtefactError, EngineError
from sae_runtime.paths import SAE_CONFIG_FILE, SAE_WEIGHTS_FILE
from sae_runtime.sae import SAE, GatedSAE, JumpReLUSAE, ReLUSAE, TopKSAE, load_sae, save_sae

from ..damage import ByteEdit, DocumentEdit, byte_edits, damaged, document_edits, edited
from ..files import scratch
from ..texts import documents

Case = tuple[str, list[DocumentEdit], list[ByteEdit], list[DocumentEdit], list[ByteEdit]]

_KINDS: dict[str, type[SAE]] = {"standard": ReLUSAE, "jumprelu": JumpReLUSAE, "gated": GatedSAE, "topk": TopKSAE}
_D_IN, _D_SAE = 3, 5
_options = st.lists(
    st.tuples(st.integers(0, 400), st.just("add"), documents())
    | st.tuples(st.integers(0, 400), st.just("replace"), st.sampled_from(
        ["topk", "standard", "jumprelu", "gated", "none", True, False, 0, 1, 5, 6, [], {}, None, [4, 3, 2, 1, 0], [0, 0, 1, 2, 3]])),
    max_size=2,
)  # fmt: skip
_none: st.SearchStrategy[list[Any]] = st.just([])
CASES: st.SearchStrategy[Case] = st.one_of(
    st.tuples(st.sampled_from(sorted(_KINDS)), document_edits(2) | _options, _none, _none, _none),
    st.tuples(st.sampled_from(sorted(_KINDS)), _none, byte_edits(3), _none, _none),
    st.tuples(st.sampled_from(sorted(_KINDS)), _none, _none, document_edits(2), _none),
    st.tuples(st.sampled_from(sorted(_KINDS)), _none, _none, _none, byte_edits(3)),
    st.tuples(st.sampled_from(sorted(_KINDS)), _options, _none, document_edits(1), byte_edits(1)),
)


@cache
def _whole(kind: str) -> tuple[dict[str, Any], bytes]:
    """Configuration and weights file of a small SAE of each kind."""
    generator = torch.Generator().manual_seed(1)
    cls = _KINDS[kind]
    shapes = {"W_enc": (_D_IN, _D_SAE), "W_dec": (_D_SAE, _D_IN), "b_dec": (_D_IN,)}
    names = ("W_enc", "W_dec", "b_dec", *cls.latent_weights)
    weights = {name: torch.rand(shapes.get(name, (_D_SAE,)), generator=generator) for name in names}
    metadata = {"model_name": "tiny", "hook_name": "blocks.1.hook_resid_post", "sensecheck_latents": [2, 3, 5, 8, 13]}
    options = {"k": 2} if kind == "topk" else {}
    folder = scratch() / f"whole-{kind}"
    save_sae(cls(weights, metadata, **options), folder)
    config = json.loads((folder / SAE_CONFIG_FILE).read_text("utf-8"))
    return {**config, "rescale_acts_by_decoder_norm": False}, (folder / SAE_WEIGHTS_FILE).read_bytes()


def check(case: Case) -> None:
    """See the module."""
    kind, config_edits, config_bytes, header_edits, weight_bytes = case
    config, weights = _whole(kind)
    folder = scratch() / "sae"
    folder.mkdir(exist_ok=True)
    text = json.dumps(edited(config, config_edits)).encode()
    (folder / SAE_CONFIG_FILE).write_bytes(damaged(text, config_bytes))
    (folder / SAE_WEIGHTS_FILE).write_bytes(damaged(_with_header(weights, header_edits), weight_bytes))
    try:
        sae = load_sae(folder)
    except ArtefactError as error:
        assert error.message and error.remedy, "an error without remedy"
        return
    _usable(sae)
    _same_when_compact(sae, load_sae(folder, compact=True))


def _with_header(data: bytes, edits: list[DocumentEdit]) -> bytes:
    """The safetensors file with an edited header: its length, its JSON, the same tensor data behind."""
    length = int.from_bytes(data[:8], "little")
    header = json.dumps(edited(json.loads(data[8 : 8 + length]), edits)).encode()
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


def _same_when_compact(sae: SAE, compact: SAE) -> None:
    """Serving reads the file in another way; what comes out is the same."""
    x = torch.ones(2, sae.d_in)
    torch.testing.assert_close(compact.encode(x), sae.encode(x), equal_nan=True, rtol=1e-4, atol=1e-4)
    assert compact.latents == sae.latents


def _usable(sae: SAE) -> None:
    x = torch.arange(4 * sae.d_in, dtype=torch.float32).reshape(4, sae.d_in) + 1
    features = sae.encode(x)
    assert features.shape == (4, sae.d_sae)
    assert sae.decode(features).shape == x.shape
    latents = sae.latents
    assert all(type(latent) is int and 0 <= latent < 2**31 for latent in latents), "latents that are no numbers"
    assert len(set(latents)) == sae.d_sae, "a latent twice"
    if sae.d_sae:
        column = torch.tensor([sae.d_sae - 1])
        torch.testing.assert_close(sae.encode(x, column), features[:, column], equal_nan=True, rtol=1e-4, atol=1e-4)
    again = scratch() / "sae-again"
    shutil.rmtree(again, ignore_errors=True)
    save_sae(sae, again)
    copy = load_sae(again)
    assert type(copy) is type(sae) and copy.latents == latents
    for name, tensor in sae.weights.items():
        torch.testing.assert_close(copy.weights[name], tensor, equal_nan=True, rtol=0, atol=0)
    try:
        some = encode_prompt(sae, x, latents[-1:])
    except EngineError:  # not finite
        return
    assert set(some.latents.tolist()) <= set(latents[-1:])
