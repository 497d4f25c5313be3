"""Tiny causal models of many families with random weights, a tokenizer and text for them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from recipes.data.tokenizer import save_bpe_tokenizer
from tests.unit.data_samples import write_jsonl

VOCAB_SIZE, NUM_LAYERS, CONTEXT = 300, 3, 64
_SIZES = {"vocab_size": VOCAB_SIZE, "hidden_size": 32, "num_hidden_layers": NUM_LAYERS}
_ATTENTION = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
_MLP = {"intermediate_size": 48, "max_position_embeddings": CONTEXT, "initializer_range": 0.2}


def _llama() -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**_SIZES, **_ATTENTION, **_MLP))


def _qwen3() -> PreTrainedModel:
    config = Qwen3Config(**_SIZES, **_ATTENTION, **_MLP, tie_word_embeddings=True)
    return Qwen3ForCausalLM(config)


def _gpt2() -> PreTrainedModel:
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCAB_SIZE, n_embd=32, n_layer=NUM_LAYERS, n_head=4, n_positions=CONTEXT,
            initializer_range=0.2,
        )
    )  # fmt: skip


def _gpt_neox() -> PreTrainedModel:
    config = GPTNeoXConfig(**_SIZES, **_MLP, num_attention_heads=4, use_parallel_residual=True)
    return GPTNeoXForCausalLM(config)


def _gemma2() -> PreTrainedModel:
    """Alternates sliding and full attention, and caps its logits."""
    config = Gemma2Config(**_SIZES, **_ATTENTION, **_MLP, sliding_window=8)
    return Gemma2ForCausalLM(config)


def _deepseek_v3() -> PreTrainedModel:
    """Latent attention, routed experts, a dense first layer."""
    return DeepseekV3ForCausalLM(
        DeepseekV3Config(
            **_SIZES, **_MLP, num_attention_heads=4, num_key_value_heads=4, kv_lora_rank=8,
            q_lora_rank=12, qk_rope_head_dim=4, v_head_dim=8, qk_nope_head_dim=8,
            n_routed_experts=NUM_LAYERS + 1, n_shared_experts=1, num_experts_per_tok=2,
            moe_intermediate_size=16, first_k_dense_replace=1, n_group=1, topk_group=1,
        )
    )  # fmt: skip


TEXT = "to be or not to be that is the question whether tis nobler in the mind"

# name -> (model with random weights, its final norm)
FAMILIES = {
    "llama": (_llama, "model.norm"),
    "qwen3": (_qwen3, "model.norm"),
    "gpt2": (_gpt2, "transformer.ln_f"),
    "gpt_neox": (_gpt_neox, "gpt_neox.final_layer_norm"),
    "gemma2": (_gemma2, "model.norm"),
    "deepseek_v3": (_deepseek_v3, "model.norm"),
}


def build_opt() -> PreTrainedModel:
    """Projects what its last layer returns: no norm feeds the unembedding."""
    return OPTForCausalLM(
        OPTConfig(
            vocab_size=VOCAB_SIZE, hidden_size=32, word_embed_proj_dim=16, num_hidden_layers=2,
            ffn_dim=48, num_attention_heads=4, max_position_embeddings=CONTEXT,
            do_layer_norm_before=False,
        )
    )  # fmt: skip


def save_model(folder: Path, build: Callable[[], PreTrainedModel]) -> Path:
    """A Hugging Face folder with a tokenizer. Norms have weights of their own, so that the states
    on their two sides differ in shape."""
    torch.manual_seed(0)
    model = build()
    with torch.no_grad():
        for param in model.parameters():
            if param.dim() == 1:
                param.uniform_(0.2, 2.0)
    save_tokenizer(folder)
    model.save_pretrained(folder)
    return folder


def save_tokenizer(folder: Path) -> Path:
    """Its EOS is token 0."""
    save_bpe_tokenizer(folder, [TEXT], vocab_size=VOCAB_SIZE)
    return folder


def save_text(path: Path) -> Path:
    """40 documents of 1 to 90 words: a row may have several, and one may be longer than a row."""
    random = np.random.RandomState(0)
    lengths = random.randint(1, 91, size=40)
    texts = [" ".join(random.choice(TEXT.split(), length)) for length in lengths]
    return write_jsonl(path, [{"text": text} for text in texts])
