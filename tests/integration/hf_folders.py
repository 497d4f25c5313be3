"""Hugging Face model folders as stock transformers writes them: tiny, with random weights."""

from pathlib import Path

import torch
from transformers import (
    Glm4MoeConfig,
    Glm4MoeForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

_COMMON = {
    "vocab_size": 8192, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False, "max_position_embeddings": 64,
    "initializer_range": 0.2,  # large: a fault shows in the logits
}  # fmt: skip
_ROPE = {"rope_type": "default", "rope_theta": 50_000.0}
OVERRIDES = [
    "--model.num_layers=3", "--model.dim=64", "--model.num_heads=4", "--model.num_kv_heads=2",
    "--model.head_dim=16", "--model.ffn_dim=96", "--model.norm_eps=1e-5",
    "--model.rope_theta=50000", "--nitp.target_layer=1", "--training.seq_len=64",
]  # fmt: skip
# name -> (configuration of the run that continues it, overrides)
RUNS = {
    "llama": ("train_configs/debug.toml", OVERRIDES),
    "qwen3_tied": (
        "train_configs/debug.toml",
        [*OVERRIDES, "--model.qk_norm", "--model.tie_embeddings"],
    ),
    "glm4_moe": ("train_configs/debug_moe.toml", [*OVERRIDES, "--model.expert_dim=48"]),
}


def save_hf_folder(folder: Path, name: str) -> None:
    torch.manual_seed(0)
    if name == "llama":
        model = LlamaForCausalLM(LlamaConfig(**_COMMON, rope_parameters=_ROPE))
    elif name == "qwen3_tied":
        tied = _COMMON | {"tie_word_embeddings": True}
        model = Qwen3ForCausalLM(Qwen3Config(**tied, rope_parameters=_ROPE))
    else:
        model = Glm4MoeForCausalLM(
            Glm4MoeConfig(
                **_COMMON,
                rope_parameters=_ROPE | {"partial_rotary_factor": 1.0},
                moe_intermediate_size=48,
                n_routed_experts=8,
                n_shared_experts=1,
                num_experts_per_tok=2,
                first_k_dense_replace=1,
            )
        )
        for layer in model.model.layers[1:]:
            layer.mlp.gate.e_score_correction_bias.uniform_(-0.1, 0.1)
            torch.nn.init.normal_(layer.mlp.gate.weight, std=0.2)
    model.save_pretrained(folder)
