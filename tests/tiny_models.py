"""Tiny randomly initialised models of five architectures, and the text for them. Made on the spot, nothing is downloaded.

Tests import this module by name: pytest puts the folder of ``tests/conftest.py`` on the import path.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

LAYERS, HIDDEN, HEADS, VOCABULARY, CONTEXT = 3, 32, 4, 400, 256
GEMMA_WINDOW = 8  # tokens that a sliding layer sees; far fewer than the sequences of the tests have

_SPECIAL = ["<pad>", "<eos>", "<bos>", "<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>"]
_IDS = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}

_CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# As Qwen2's: a conversation without a system message gets one.
_QWEN = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\nYou help.<|im_end|>\\n' }}{% endif %}" + _CHATML
)
# As Gemma-3's: begins with <bos>, knows no system role, strips what users and models say, wants strict turns.
_GEMMA = (
    "{{ bos_token }}{% set ns = namespace(prefix='', turns=messages) %}"
    "{% if messages[0]['role'] == 'system' %}"
    "{% set ns.prefix = messages[0]['content'] + '\\n\\n' %}{% set ns.turns = messages[1:] %}{% endif %}"
    "{% for m in ns.turns %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\\n' }}"
    "{{ (ns.prefix if loop.first else '') + m['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Architecture:
    """How a tiny model of one kind is made.

    Attributes:
        model, config: transformers classes.
        settings: fields of the configuration.
        template: chat template, None for a base model.
        bos: the tokenizer puts ``<bos>`` before plain text, as Llama's and Gemma's do.
    """

    model: Callable[[Any], Any]
    config: Callable[..., Any]
    settings: dict[str, Any] = field(default_factory=dict)
    template: str | None = None
    bos: bool = False


# Weights of this spread let the layers change the stream about as much as trained ones do. Configurations that have
# older names for these settings, such as GPT-2's, take these too.
_COMMON = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "max_position_embeddings": CONTEXT,
    "vocab_size": VOCABULARY,
    "initializer_range": 0.15,
    **_IDS,
}
_WIDE = {"intermediate_size": 2 * HIDDEN}

ARCHITECTURES = {
    "llama": Architecture(LlamaForCausalLM, LlamaConfig, {**_WIDE, "num_key_value_heads": 2}, _CHATML, bos=True),
    "qwen2": Architecture(Qwen2ForCausalLM, Qwen2Config, {**_WIDE, "num_key_value_heads": 2}, _QWEN),
    "gpt2": Architecture(GPT2LMHeadModel, GPT2Config),
    # Its vocabulary is padded beyond the tokenizer's, as in the published models.
    "gpt_neox": Architecture(GPTNeoXForCausalLM, GPTNeoXConfig, {**_WIDE, "vocab_size": VOCABULARY + 16}),
    "gemma3": Architecture(
        Gemma3ForCausalLM,
        Gemma3TextConfig,
        {
            **_WIDE,
            "num_key_value_heads": 2,
            "head_dim": HIDDEN // HEADS,
            "query_pre_attn_scalar": HIDDEN // HEADS,
            "sliding_window": GEMMA_WINDOW,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
        _GEMMA,
        bos=True,
    ),
}


def make_model(folder: Path, architecture: str, *, seed: int = 0, chat: bool = True, **settings: Any) -> Path:
    """Write a model of one of :data:`ARCHITECTURES` with weights and tokenizer to ``folder``; returns it.

    Args:
        folder: new or empty.
        architecture: which.
        seed: of the weights, and of nothing else.
        chat: False leaves out the chat template, as in base models.
        settings: fields of the configuration to change.
    """
    made = ARCHITECTURES[architecture]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = made.model(made.config(**(_COMMON | made.settings | settings)))
    model.save_pretrained(folder)
    tokenizer = _tokenizer(bos=made.bos)
    tokenizer.chat_template = made.template if chat else None
    tokenizer.save_pretrained(folder)
    return folder


def reconfigure(folder: Path, **settings: Any) -> None:
    """Change fields of a model's ``config.json`` and leave the weights as they are."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | settings), "utf-8")


def _tokenizer(*, bos: bool) -> PreTrainedTokenizerFast:
    """Byte-level BPE with :data:`VOCABULARY` tokens, learned from :func:`sentences`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=_SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sentences(300, seed=0), trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    names = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, additional_special_tokens=_SPECIAL[3:], **names)


_WHO = ("The farmer", "A teacher", "My sister", "The old captain", "Our neighbour", "Every clerk", "The young nurse")
_DOES = ("counted", "carried", "sold", "painted", "shared", "divided", "lost", "repaired", "measured", "borrowed")
_MANY = ("two", "three", "seven", "a dozen", "forty", "half of the", "some of the", "twice as many")
_WHAT = ("apples", "boxes", "letters", "coins", "lamps", "ropes", "windows", "stones", "loaves of bread", "tickets")
_WHERE = ("in the market", "near the river", "behind the school", "on the roof", "at the station", "under the bridge")
_WHEN = ("this morning", "before the rain", "last winter", "after the meeting", "every evening", "at noon")


def sentences(count: int, *, seed: int) -> list[str]:
    """Short English sentences, all from the same few words, about 25 tokens each; questions among them."""
    draw = random.Random(seed)
    made = []
    for _ in range(count):
        many, what, where = draw.choice(_MANY), draw.choice(_WHAT), draw.choice(_WHERE)
        if draw.random() < 0.25:
            made.append(f"How many {what} are left {where}, and what is the sum of {draw.randint(2, 99)} and {many}?")
        else:
            made.append(f"{draw.choice(_WHO)} {draw.choice(_DOES)} {many} {what} {where} {draw.choice(_WHEN)}.")
    return made
