"""Checks a Hugging Face folder before training continues from it.

TorchTitan loads what the model asks for by name. It sees neither what else the folder holds nor
what only config.json tells: a wrong RoPE base would load, and train from nonsense.
"""

import json
from pathlib import Path
from typing import Any

import torch
from torchtitan.models.qwen3.model import Qwen3Model

from recipes.models.hf.config import build_config
from recipes.models.hf.mapping import DecoderStateDictAdapter, model_shapes, plan_entries
from recipes.models.hf.weights import read_json_object, read_weights

# Of config.json: these do not change what the weights compute, or (the last) follow from names.
_FREE = {
    "max_position_embeddings", "bos_token_id", "eos_token_id", "torch_dtype", "use_cache",
    "attention_dropout", "rope_parameters", "sliding_window", "num_nextn_predict_layers",
}  # fmt: skip
# What transformers 4 and 5 take where config.json leaves it out. What is None follows from others.
_DEFAULTS: dict[Any, dict[str, Any]] = {
    "llama": {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": None,
        "head_dim": None,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 10_000.0,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "mlp_bias": False,
    },
    "qwen3": {
        "architectures": ["Qwen3ForCausalLM"],
        "vocab_size": 151936,
        "hidden_size": 4096,
        "intermediate_size": 22016,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "head_dim": 128,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 10_000.0,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "use_sliding_window": False,
    },
    "glm4_moe": {
        "architectures": ["Glm4MoeForCausalLM"],
        "vocab_size": 151552,
        "hidden_size": 4096,
        "intermediate_size": 10944,
        "num_hidden_layers": 46,
        "num_attention_heads": 96,
        "num_key_value_heads": 8,
        "head_dim": None,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10_000.0,
        "partial_rotary_factor": 0.5,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "moe_intermediate_size": 1408,
        "num_experts_per_tok": 8,
        "n_shared_experts": 1,
        "n_routed_experts": 128,
        "routed_scaling_factor": 1.0,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "norm_topk_prob": True,
        "use_qk_norm": False,
    },
}
# As safetensors names them.
_FLOATS = ("F64", "F32", "F16", "BF16")
_UNUSED = ".rotary_emb.inv_freq"
"""Older files have it in each layer; it follows from the RoPE base, and transformers ignores it."""


def check_hf_folder(folder: Path, model: Qwen3Model.Config) -> None:
    """Raise ValueError, one line, unless `folder` holds exactly `model`, by config.json and by the
    names and shapes of its tensors."""
    _check_config(folder, model)
    adapter = DecoderStateDictAdapter(model, None)
    is_tied = model.enable_weight_tying
    entries = plan_entries(adapter, model_shapes(model), torch.float32, is_tied=is_tied)
    expected = {entry.name: entry.shape for entry in entries}
    found = {
        name: (shape, dtype)
        for name, (shape, dtype) in read_weights(folder).items()
        # Some writers store the same matrix twice.
        if not name.endswith(_UNUSED) and not (is_tied and name == "lm_head.weight")
    }
    for name in sorted(expected.keys() | found.keys()):
        shape, dtype = found.get(name, (None, None))
        if shape != expected.get(name):
            raise ValueError(
                f"{folder}: {name} is {_describe(shape)}, in the model "
                f"{_describe(expected.get(name))}."
            )
        if dtype not in _FLOATS:
            raise ValueError(
                f"{folder}: {name} has the dtype {dtype}, a quantized one. Give weights in one of "
                f"{', '.join(_FLOATS)}."
            )


def _check_config(folder: Path, model: Qwen3Model.Config) -> None:
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"{folder} has no config.json: not a Hugging Face model folder.")
    given = read_json_object(path)
    try:
        found = complete_config(given)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    expected = complete_config(
        build_config(
            model,
            max_position_embeddings=0,
            dtype=torch.float32,
            bos_token_id=None,
            eos_token_id=None,
        )
    )
    for key, value in expected.items():
        if key not in _FREE and found.get(key) != value:
            origin = "" if f'"{key}"' in json.dumps(given) else ", as transformers takes it"
            raise ValueError(
                f"{path} has {key} = {json.dumps(found.get(key))}{origin}, the model "
                f"{json.dumps(value)}. Give the model the folder's value."
            )


def complete_config(config: dict[str, Any]) -> dict[str, Any]:
    """The content of config.json with what it leaves out as transformers completes it, and RoPE at
    the top, where transformers 4 has it; transformers 5 nests it.

    Raises ValueError if it says two things about RoPE, of which each version takes another.
    """
    kind = config.get("model_type")
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    is_flat = isinstance(rope, dict) and not any(isinstance(v, dict) for v in rope.values())
    if not is_flat:
        raise ValueError(f"RoPE by layers ({json.dumps(rope)}) is not supported.")
    result = _DEFAULTS.get(str(kind), {}) | config
    result["architectures"] = config.get("architectures") or result.get("architectures")
    result["rope_type"] = rope.get("rope_type", rope.get("type", "default"))
    for key in ("rope_theta", "partial_rotary_factor"):
        if rope.get(key) is None:
            continue
        if config.get(key) not in (None, rope[key]):
            raise ValueError(
                f"{key} is {json.dumps(config[key])} at the top and {json.dumps(rope[key])} in the "
                "RoPE parameters. Remove the wrong one."
            )
        result[key] = rope[key]
    dim, num_heads = result.get("hidden_size"), result.get("num_attention_heads")
    if result.get("num_key_value_heads") is None:
        result["num_key_value_heads"] = num_heads
    if result.get("head_dim") is None and isinstance(dim, int) and isinstance(num_heads, int):
        result["head_dim"] = dim // max(num_heads, 1)
    return result


def _describe(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else f"of shape {list(shape)}"
