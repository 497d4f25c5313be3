"""config.json and generation_config.json, by hand.

Written key by key because the library's own output fits only its own version: transformers 5 saves
RoPE as `rope_parameters`, transformers 4 reads `rope_theta`; here are both.
"""

from collections.abc import Iterable
from typing import Any, TypeVar

import torch
from torchtitan.models.common.attention import GQAttention
from torchtitan.models.common.moe import MoE
from torchtitan.models.common.rope import CosSinRoPE
from torchtitan.models.qwen3.model import Qwen3Model

T = TypeVar("T")

# Neither changes what the exported weights compute; readers expect the keys.
_COMMON = {"hidden_act": "silu", "attention_dropout": 0.0, "use_cache": True}


_FREE = ("attention_dropout", "use_cache", "sliding_window")
"""Of `build_config`: what a reader of the weights may set otherwise, or what has no effect."""

_FOLLOWS = {
    "_name_or_path", "transformers_version", "auto_map", "quantization_config", "dtype",
    "rope_scaling", "layer_types", "mlp_layer_types",
}  # fmt: skip
"""Of another config.json: what is about its own files, and what follows from other keys."""


def build_config(
    model: Qwen3Model.Config,
    *,
    max_position_embeddings: int,
    dtype: torch.dtype,
    bos_token_id: int | None,
    eos_token_id: int | None,
) -> dict[str, Any]:
    """config.json of the stock architecture that computes what `model` computes.

    LlamaForCausalLM; Qwen3ForCausalLM where queries and keys are normalised; Glm4MoeForCausalLM for
    mixtures of experts. Raises ValueError for a model that none of them expresses.
    """
    attention = _common((layer.attention for layer in model.layers), "attention")
    norms = [model.norm, *(n for x in model.layers for n in (x.attention_norm, x.ffn_norm))]
    rope = attention.rope
    if not isinstance(rope, CosSinRoPE.Config) or rope.scaling != "none":
        raise ValueError("the rotary embedding must be half-rotation (CosSinRoPE), not scaled.")
    theta = float(rope.theta)
    config = {
        "vocab_size": model.vocab_size,
        "hidden_size": model.dim,
        "num_hidden_layers": len(model.layers),
        "num_attention_heads": attention.n_heads,
        "num_key_value_heads": attention.n_kv_heads or attention.n_heads,
        "head_dim": attention.head_dim or model.dim // attention.n_heads,
        "rms_norm_eps": _same((norm.eps for norm in norms), "norm epsilon"),
        "rope_theta": theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": theta},
        "max_position_embeddings": max_position_embeddings,
        "tie_word_embeddings": model.enable_weight_tying,
        "attention_bias": False,
        **_COMMON,
        "bos_token_id": bos_token_id,
        "eos_token_id": eos_token_id,
        "torch_dtype": str(dtype).removeprefix("torch."),
    }
    dense = [x.feed_forward.w1.out_features for x in model.layers if x.feed_forward is not None]
    if any(layer.moe is not None for layer in model.layers):
        return _glm4_moe(model, attention, dense) | config | _glm4_rope(theta)
    config["intermediate_size"] = _same(dense, "FFN width")
    if attention.qk_norm is None:
        head = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
        return head | config | {"mlp_bias": False}
    head = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}
    return head | config | {"use_sliding_window": False, "sliding_window": None}


def keep_original(config: dict[str, Any], original: dict[str, Any]) -> dict[str, Any]:
    """`config` of a training that continued `original`'s weights, with what that says where the
    training did not change it: special tokens that training does not have, positions beyond those
    it used, and what does not change what the weights compute."""
    kept = {key: value for key, value in original.items() if key not in _FOLLOWS}
    ours = {key: value for key, value in config.items() if not (key in _FREE and key in kept)}
    positions = kept.get("max_position_embeddings")
    if isinstance(positions, int):
        ours["max_position_embeddings"] = max(positions, config["max_position_embeddings"])
    return {**config, **kept, **ours, **_choose_ids(config, kept)}


def build_generation_config(
    config: dict[str, Any], original: dict[str, Any] | None = None
) -> dict[str, Any]:
    """generation_config.json: the special tokens of `config`, and nothing about sampling but what
    the `original` says, of the weights that training continued."""
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    ids = {name: config[name] for name in names if config.get(name) is not None}
    if original is None:
        return ids
    return {**ids, **original, **_choose_ids(ids, original)}


def _choose_ids(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """BOS and EOS: a model may end with one of several tokens, of which training has one."""
    chosen = dict[str, Any]()
    for name in ("bos_token_id", "eos_token_id"):
        trained, given = (_as_list(side.get(name)) for side in (ours, theirs))
        side = theirs if {*trained} <= {*given} else ours
        if name in side:
            chosen[name] = side[name]
    return chosen


def _as_list(ids: Any) -> list[Any]:
    return ids if isinstance(ids, list) else [] if ids is None else [ids]


def _glm4_moe(
    model: Qwen3Model.Config, attention: GQAttention.Config, dense: list[int]
) -> dict[str, Any]:
    num_dense = len(dense)
    if any((layer.moe is None) != (i < num_dense) for i, layer in enumerate(model.layers)):
        raise ValueError("Glm4MoeForCausalLM has its dense layers before its MoE layers.")
    if model.enable_weight_tying:
        raise ValueError(
            "model.tie_embeddings (true): not every reader of Glm4MoeForCausalLM ties its "
            "embeddings. A mixture of experts must be untied."
        )
    moe = _common((layer.moe for layer in model.layers[num_dense:]), "MoE")
    router, shared = moe.router, moe.shared_experts
    expert_dim = moe.routed_experts.inner_experts.hidden_dim
    if router.score_func != "sigmoid":
        raise ValueError(
            f'model.router_score_func ("{router.score_func}") must be "sigmoid" to export, or to '
            "start from Hugging Face weights: Glm4MoeForCausalLM routes by sigmoid scores."
        )
    if router.num_expert_groups is not None:
        raise ValueError("Glm4MoeForCausalLM is supported with one group of experts.")
    if moe.load_balance_coeff is None:
        raise ValueError("Glm4MoeForCausalLM has a selection bias; this router has none.")
    if shared is None:
        raise ValueError(
            "model.num_shared_experts (0) must be at least 1 to export: Glm4MoeForCausalLM has "
            "shared experts."
        )
    return {
        "architectures": ["Glm4MoeForCausalLM"],
        "model_type": "glm4_moe",
        # Without dense layers the width is unused, and must be a number.
        "intermediate_size": _same(dense, "FFN width") if dense else expert_dim,
        "first_k_dense_replace": num_dense,
        "moe_intermediate_size": expert_dim,
        "n_routed_experts": moe.num_experts,
        "n_shared_experts": shared.w1.out_features // expert_dim,
        "num_experts_per_tok": router.top_k,
        "norm_topk_prob": router.route_norm,
        "routed_scaling_factor": router.route_scale,
        "n_group": 1,
        "topk_group": 1,
        "num_nextn_predict_layers": 0,
        "use_qk_norm": attention.qk_norm is not None,
    }


def _glm4_rope(theta: float) -> dict[str, Any]:
    # The architecture's default, 0.5, would rotate half of each head only.
    rope = {"rope_type": "default", "rope_theta": theta, "partial_rotary_factor": 1.0}
    return {"partial_rotary_factor": 1.0, "rope_parameters": rope}


def _common(parts: Iterable[T], what: str) -> T:
    """The first of configs that differ in nothing that the forward pass depends on."""
    first, *others = parts
    for other in others:
        if _shape_of(other) != _shape_of(first):
            raise ValueError(f"layers with different {what} have no stock architecture.")
    return first


def _shape_of(part: Any) -> tuple[Any, ...]:
    if isinstance(part, MoE.Config):
        router, shared = part.router, part.shared_experts
        return (
            part.num_experts, router.top_k, router.score_func, router.route_norm,
            router.route_scale, part.routed_experts.inner_experts.hidden_dim,
            shared and shared.w1.out_features,
        )  # fmt: skip
    return (part.n_heads, part.n_kv_heads, part.head_dim, part.rope.theta, part.qk_norm is None)


def _same(values: Iterable[Any], what: str) -> Any:
    distinct = set(values)
    if len(distinct) != 1:
        raise ValueError(f"layers with different {what} have no stock architecture.")
    return distinct.pop()
