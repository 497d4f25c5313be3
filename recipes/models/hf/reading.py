"""Checks a Hugging Face folder before training continues from it.

TorchTitan loads what the model asks for by name. It sees neither what else the folder holds nor
what only config.json tells: a wrong RoPE base would load, and train from nonsense.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torchtitan.models.qwen3.model import Qwen3Model

from recipes.models.hf.config import build_config
from recipes.models.hf.mapping import DecoderStateDictAdapter, model_shapes, plan_entries

# Of config.json: these do not change what the weights compute, or (the last) follow from names.
_FREE = {
    "max_position_embeddings", "bos_token_id", "eos_token_id", "torch_dtype", "use_cache",
    "attention_dropout", "rope_parameters", "sliding_window", "num_nextn_predict_layers",
}  # fmt: skip
# What config.json may leave out, in older files.
_DEFAULTS = {
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
}


def check_hf_folder(folder: Path, model: Qwen3Model.Config) -> None:
    """Raise ValueError, one line, unless `folder` holds exactly `model`, by config.json and by the
    names and shapes of its tensors."""
    _check_config(folder, model)
    adapter = DecoderStateDictAdapter(model, None)
    is_tied = model.enable_weight_tying
    entries = plan_entries(adapter, model_shapes(model), torch.float32, is_tied=is_tied)
    expected = {entry.name: entry.shape for entry in entries}
    found = _read_shapes(folder)
    if is_tied:  # some writers store the same matrix twice
        found.pop("lm_head.weight", None)
    for name in sorted(expected.keys() | found.keys()):
        if found.get(name) != expected.get(name):
            raise ValueError(
                f"{folder}: {name} is {_describe(found.get(name))}, in the model "
                f"{_describe(expected.get(name))}."
            )


def _check_config(folder: Path, model: Qwen3Model.Config) -> None:
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"{folder} has no config.json: not a Hugging Face model folder.")
    found = _normalize(json.loads(path.read_text(encoding="utf-8")))
    expected = _normalize(
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
            raise ValueError(
                f"{path} has {key} = {json.dumps(found.get(key))}, the model "
                f"{json.dumps(value)}. Give the model the folder's value."
            )


def _normalize(config: dict[str, Any]) -> dict[str, Any]:
    """With RoPE in one form: transformers 5 nests what transformers 4 has at the top."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    result = _DEFAULTS | config | {"rope_type": rope.get("rope_type", "default")}
    for key in ("rope_theta", "partial_rotary_factor"):
        if key in rope:
            result[key] = rope[key]
    if result.get("head_dim") is None:
        result["head_dim"] = config["hidden_size"] // config["num_attention_heads"]
    return result


def _read_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(f"{folder} has no *.safetensors files.")
    shapes = {}
    for path in files:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a dictionary
                shapes[name] = tuple(file.get_slice(name).get_shape())
    return shapes


def _describe(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else f"of shape {list(shape)}"
