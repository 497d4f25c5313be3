"""Shapes of the decoders this project trains, by flavour.

Plain data: no torch, so depth and size are known before anything heavy is imported.
"""

from dataclasses import dataclass
from typing import Literal

RouterScoreFunc = Literal["sigmoid", "softmax"]


@dataclass(kw_only=True, slots=True, frozen=True)
class DecoderShape:
    """Shape of a pre-norm decoder with grouped-query attention and SwiGLU or MoE layers."""

    vocab_size: int
    """Rows of the embedding and of the unembedding."""

    dim: int
    """Model dimension d."""

    num_layers: int
    """Number of decoder layers."""

    num_heads: int
    """Query heads."""

    num_kv_heads: int
    """Key-value heads; must divide num_heads."""

    head_dim: int
    """Width of one attention head; even, for rotary embeddings."""

    ffn_dim: int
    """Hidden width of the dense SwiGLU layers."""

    num_dense_layers: int = 0
    """MoE only: how many of the first layers are dense."""

    num_experts: int = 0
    """Routed experts per MoE layer; 0 is a dense model."""

    num_shared_experts: int = 0
    """MoE only: shared experts, computed as one SwiGLU of their joint width."""

    top_k: int = 0
    """MoE only: routed experts per token."""

    expert_dim: int = 0
    """MoE only: hidden width of one expert."""

    router_score_func: RouterScoreFunc = "sigmoid"
    """MoE only: how the router's logits become scores. Either way the top_k experts by score and
    selection bias are chosen, and weighted by their scores over the sum of these. Softmax is not
    exported; its scores add up to 1, so that an expert_bias_rate that suits them is smaller."""

    expert_bias_rate: float = 1e-3
    """MoE only: step of the router's selection bias, which balances the experts' load."""

    qk_norm: bool = False
    """Whether queries and keys are normalised per head."""

    tie_embeddings: bool = False
    """Whether embedding and unembedding share one matrix."""

    rope_theta: float = 1_000_000.0
    """Base of the rotary position embedding."""

    norm_eps: float = 1e-6
    """Epsilon of every RMSNorm."""

    init_std: float = 0.02
    """Standard deviation of the truncated-normal initialisation."""

    max_seq_len: int = 32768
    """Longest sequence the rotary embedding is built for."""

    def __post_init__(self) -> None:
        for name in ("vocab_size", "dim", "num_layers", "num_heads", "num_kv_heads", "ffn_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"model.{name} ({getattr(self, name)}) must be at least 1.")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"model.num_kv_heads ({self.num_kv_heads}) must divide model.num_heads "
                f"({self.num_heads})."
            )
        if self.head_dim < 2 or self.head_dim % 2:
            raise ValueError(f"model.head_dim ({self.head_dim}) must be even and positive.")
        if self.is_moe:
            if not 1 <= self.top_k <= self.num_experts:
                raise ValueError(
                    f"model.top_k ({self.top_k}) must be in 1..model.num_experts "
                    f"({self.num_experts})."
                )
            if self.expert_dim < 1:
                raise ValueError(f"model.expert_dim ({self.expert_dim}) must be at least 1.")
            if not 0 <= self.num_dense_layers < self.num_layers:
                raise ValueError(
                    f"model.num_dense_layers ({self.num_dense_layers}) must be at least 0 and "
                    f"less than model.num_layers ({self.num_layers})."
                )

    @property
    def is_moe(self) -> bool:
        return self.num_experts > 0


FLAVORS: dict[str, DecoderShape] = {
    # A few million parameters: trains on a laptop's CPU.
    "debug": DecoderShape(
        vocab_size=8192,
        dim=192,
        num_layers=8,
        num_heads=6,
        num_kv_heads=2,
        head_dim=32,
        ffn_dim=512,
    ),
    "debug_moe": DecoderShape(
        vocab_size=8192,
        dim=128,
        num_layers=5,
        num_heads=4,
        num_kv_heads=2,
        head_dim=32,
        ffn_dim=512,
        num_dense_layers=1,
        num_experts=8,
        num_shared_experts=1,
        top_k=2,
        expert_dim=128,
    ),
    # Paper's Table 4, in its order.
    "1.9b_a0.3b": DecoderShape(
        vocab_size=152064,
        dim=512,
        num_layers=16,
        num_heads=8,
        num_kv_heads=4,
        head_dim=64,
        ffn_dim=10944,
        num_dense_layers=1,
        num_experts=144,
        num_shared_experts=1,
        top_k=8,
        expert_dim=496,
    ),
    "3b_a0.5b": DecoderShape(
        vocab_size=152064,
        dim=768,
        num_layers=17,
        num_heads=8,
        num_kv_heads=4,
        head_dim=96,
        ffn_dim=10944,
        num_dense_layers=1,
        num_experts=144,
        num_shared_experts=1,
        top_k=8,
        expert_dim=544,
    ),
    "9b_a1b": DecoderShape(
        vocab_size=152064,
        dim=1280,
        num_layers=24,
        num_heads=8,
        num_kv_heads=4,
        head_dim=160,
        ffn_dim=10944,
        num_dense_layers=1,
        num_experts=144,
        num_shared_experts=1,
        top_k=8,
        expert_dim=640,
    ),
    "45b_a5.5b": DecoderShape(
        vocab_size=152064,
        dim=3072,
        num_layers=24,
        num_heads=24,
        num_kv_heads=8,
        head_dim=128,
        ffn_dim=12288,
        num_dense_layers=1,
        num_experts=144,
        num_shared_experts=1,
        top_k=12,
        expert_dim=1408,
    ),
    "dense_0.5b": DecoderShape(
        vocab_size=152064,
        dim=896,
        num_layers=24,
        num_heads=14,
        num_kv_heads=2,
        head_dim=64,
        ffn_dim=4864,
        tie_embeddings=True,
    ),
    "dense_2b": DecoderShape(
        vocab_size=152064,
        dim=1792,
        num_layers=28,
        num_heads=14,
        num_kv_heads=2,
        head_dim=128,
        ffn_dim=10752,
        tie_embeddings=True,
    ),
    "dense_3b": DecoderShape(
        vocab_size=152064,
        dim=2560,
        num_layers=28,
        num_heads=20,
        num_kv_heads=4,
        head_dim=128,
        ffn_dim=10240,
        tie_embeddings=True,
    ),
}
