"""Dense and MoE decoders from TorchTitan's Qwen3 blocks, by shape.

One set of blocks for every family, with half-rotation RoPE, so that weights map one to one onto
stock Hugging Face architectures: Llama (no q/k norm), Qwen3 (q/k norm), Glm4Moe (MoE).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn as nn
from torchtitan.components.optimizer import register_moe_load_balancing_hook
from torchtitan.distributed import ParallelDims
from torchtitan.distributed.pipeline_parallel import pipeline_llm
from torchtitan.models.common import CosSinRoPE, Embedding, Linear
from torchtitan.models.common.config_utils import (
    get_attention_config,
    make_ffn_config,
    make_gqa_config,
    make_moe_config,
    make_routed_experts_config,
    make_router_config,
)
from torchtitan.models.common.feed_forward import FeedForward
from torchtitan.models.common.moe import MoE
from torchtitan.models.common.nn_modules import RMSNorm
from torchtitan.models.common.param_init import skip_param_init
from torchtitan.models.qwen3 import Qwen3Model, parallelize_qwen3
from torchtitan.models.qwen3.model import Qwen3TransformerBlock
from torchtitan.protocols.model_spec import ModelSpec

from recipes.models.hf.mapping import DecoderStateDictAdapter
from recipes.models.shapes import DecoderShape


class TyingQwen3Model(Qwen3Model):
    """Qwen3Model whose tied weights stay tied.

    `parallelize` gives every module its own sharded parameter. TorchTitan ties them again only
    after FSDP2 has taken both for its own; where ranks do not divide the vocabulary evenly, one of
    the copies then keeps its first values for the rest of the run, and nothing says so.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(Qwen3Model.Config):
        pass

    def parallelize(self, parallel_dims: ParallelDims) -> None:
        super().parallelize(parallel_dims)
        if self.enable_weight_tying:
            self.tok_embeddings.weight = self.lm_head.weight


def build_model_spec(shape: DecoderShape, flavor: str) -> ModelSpec:
    """TorchTitan's model specification of `shape`; `flavor` only names it in logs."""
    return ModelSpec(
        name="nitp",
        flavor=flavor,
        model=build_model_config(shape),
        parallelize_fn=parallelize_qwen3,
        pipelining_fn=pipeline_llm,
        post_optimizer_build_fn=register_moe_load_balancing_hook,
        state_dict_adapter=DecoderStateDictAdapter,
    )


def build_model_config(shape: DecoderShape) -> TyingQwen3Model.Config:
    """Every weight has a truncated-normal initial value of `init_std`; the projections that write
    to the residual stream have it divided by sqrt(2 * num_layers)."""
    embedding_init = skip_param_init if shape.tie_embeddings else _normal(shape.init_std)
    return TyingQwen3Model.Config(
        vocab_size=shape.vocab_size,
        dim=shape.dim,
        enable_weight_tying=shape.tie_embeddings,
        tok_embeddings=Embedding.Config(
            num_embeddings=shape.vocab_size,
            embedding_dim=shape.dim,
            param_init={"weight": embedding_init},
        ),
        layers=[_build_layer(shape, index) for index in range(shape.num_layers)],
        norm=_norm(shape, shape.dim),
        lm_head=Linear.Config(
            in_features=shape.dim,
            out_features=shape.vocab_size,
            param_init={"weight": _normal(shape.init_std)},
        ),
    )


def _build_layer(shape: DecoderShape, index: int) -> Qwen3TransformerBlock.Config:
    is_moe = shape.is_moe and index >= shape.num_dense_layers
    return Qwen3TransformerBlock.Config(
        attention_norm=_norm(shape, shape.dim),
        ffn_norm=_norm(shape, shape.dim),
        attention=make_gqa_config(
            dim=shape.dim,
            n_heads=shape.num_heads,
            n_kv_heads=shape.num_kv_heads,
            head_dim=shape.head_dim,
            wqkv_param_init={"weight": _normal(shape.init_std)},
            wo_param_init={"weight": _normal(_residual_std(shape))},
            inner_attention=get_attention_config("flex"),
            fuse_qkv=True,
            rope=CosSinRoPE.Config(
                dim=shape.head_dim, max_seq_len=shape.max_seq_len, theta=shape.rope_theta
            ),
            qk_norm=_norm(shape, shape.head_dim) if shape.qk_norm else None,
        ),
        feed_forward=None if is_moe else _build_ffn(shape, shape.ffn_dim),
        moe=_build_moe(shape) if is_moe else None,
    )


def _build_ffn(shape: DecoderShape, hidden_dim: int) -> FeedForward.Config:
    # TorchTitan's helper has one initialiser for w2 and w3; w2 writes to the residual stream.
    config = make_ffn_config(
        dim=shape.dim,
        hidden_dim=hidden_dim,
        w1_param_init={"weight": _normal(shape.init_std)},
        w2w3_param_init={"weight": _normal(shape.init_std)},
    )
    config.w2.param_init = {"weight": _normal(_residual_std(shape))}
    return config


def _build_moe(shape: DecoderShape) -> MoE.Config:
    """Selection-bias balancing and normalised top-k (DeepSeek-V3's router, by sigmoid scores).

    Ours: the paper names a DeepSeek-V2-style MoE, whose router is softmax with auxiliary losses,
    which TorchTitan's MoE does not have.
    """
    shared_dim = shape.num_shared_experts * shape.expert_dim
    return make_moe_config(
        num_experts=shape.num_experts,
        router=make_router_config(
            dim=shape.dim,
            num_experts=shape.num_experts,
            gate_param_init={"weight": _normal(shape.init_std)},
            top_k=shape.top_k,
            score_func=shape.router_score_func,
            route_norm=True,
        ),
        routed_experts=make_routed_experts_config(
            dim=shape.dim,
            hidden_dim=shape.expert_dim,
            num_experts=shape.num_experts,
            top_k=shape.top_k,
            param_init={
                "w1_EFD": _normal(shape.init_std),
                "w2_EDF": _normal(_residual_std(shape)),
                "w3_EFD": _normal(shape.init_std),
            },
            comm_backend="standard",
        ),
        shared_experts=_build_ffn(shape, shared_dim) if shared_dim else None,
        load_balance_coeff=shape.expert_bias_rate,
    )


def _norm(shape: DecoderShape, dim: int) -> RMSNorm.Config:
    return RMSNorm.Config(
        normalized_shape=dim, eps=shape.norm_eps, param_init={"weight": nn.init.ones_}
    )


def _normal(std: float) -> Callable[[torch.Tensor], torch.Tensor]:
    return partial(nn.init.trunc_normal_, std=std)


def _residual_std(shape: DecoderShape) -> float:
    return shape.init_std / (2 * shape.num_layers) ** 0.5
