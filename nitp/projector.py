"""P, the training-only projector: a SwiGLU MLP d -> r d -> d without biases (12 d^2 at r = 4).

Predicts the implicit token from the hidden state. It is a submodule of the decoder, so optimizer,
FSDP2, gradient clipping, checkpoints and initialisation treat it like any other weight; it never
reaches exported weights.
"""

from functools import partial

import torch.nn as nn
from torchtitan.models.common.feed_forward import FeedForward
from torchtitan.models.common.linear import Linear
from torchtitan.protocols.sharding import ShardingConfig

from nitp._torchtitan import replicated_weight_sharding
from nitp.config import NITPConfig

PROJECTOR_NAME = "nitp_projector"
"""Attribute of the decoder, hence the prefix of every training-only parameter."""

# Ours: TorchTitan's usual truncated normal. Never zero: a zero P has cosine 0 and no gradient.
_INIT = {"weight": partial(nn.init.trunc_normal_, std=0.02)}


def build_projector_config(dim: int, config: NITPConfig) -> FeedForward.Config | None:
    """Config of P for model dimension `dim`; None where the run has no projector.

    The token-cosine penalty acts on the hidden state itself and has none.
    """
    if config.projector == "none" or not config.uses_target:
        return None
    hidden_dim = round(config.projector_ratio * dim)
    if hidden_dim < 1:
        raise ValueError(
            f"nitp.projector_ratio ({config.projector_ratio}) gives a projector of width "
            f"{hidden_dim} for model dimension {dim}. Use at least {1 / dim:.3g}."
        )
    return FeedForward.Config(
        w1=_linear(dim, hidden_dim), w2=_linear(hidden_dim, dim), w3=_linear(dim, hidden_dim)
    )


def set_projector_sharding(config: FeedForward.Config) -> None:
    """Replicate P over every model-parallel axis: each rank projects its own tokens.

    Converters (float8, LoRA) drop a layer's sharding; call this after them.
    """
    for linear in (config.w1, config.w2, config.w3):
        linear.sharding_config = ShardingConfig(
            state_shardings={"weight": replicated_weight_sharding()}
        )


def _linear(in_features: int, out_features: int) -> Linear.Config:
    return Linear.Config(in_features=in_features, out_features=out_features, param_init=_INIT)
