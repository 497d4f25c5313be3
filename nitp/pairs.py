"""Which positions of a batch form NITP pairs, and the model input that carries their weight."""

import torch
from torchtitan.config import ParallelismConfig
from torchtitan.distributed import ParallelDims

from nitp import objective
from nitp._torchtitan import cp_shard
from nitp.config import NITPConfig

Batch = tuple[dict[str, torch.Tensor], torch.Tensor]
"""What a data loader gives: (model inputs by name, labels)."""

PAIR_WEIGHT = "pair_weight_BL"
"""Name of the model input. A tensor, not state on the loss: it survives CUDA graph replay,
pipeline schedules and gradient accumulation alike."""


def pair_mask(
    input_dict: dict[str, torch.Tensor], labels_BL: torch.Tensor, nitp: NITPConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    """(mask_BL bool, num_pairs int64 scalar) of one batch of whole rows, before any sharding.

    mask_BL marks the positions that take part; num_pairs is the normaliser of their loss. Each
    marked position is one pair, except for the token-cosine penalty, whose pairs are the ordered
    pairs of marked tokens of a document.

    Raises ValueError if the data loader gives no positions.
    """
    if "positions" not in input_dict:
        raise ValueError(
            "NITP needs per-document positions to find document boundaries; the data loader's "
            "input dictionary has no 'positions'. Use a packed loader such as TorchTitan's text "
            "loader or this project's."
        )
    positions_BL = input_dict["positions"]
    if not nitp.uses_target:
        mask_BL = labels_BL != objective.IGNORE_INDEX
        return mask_BL, objective.token_cosine_pair_counts(positions_BL, mask_BL).sum()
    mask_BL = objective.next_token_pair_mask(positions_BL, labels_BL, nitp.shift)
    return mask_BL, mask_BL.sum()


def take_pair_weight(
    input_dict: dict[str, torch.Tensor],
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """(the pair weights, everything else): what lies between the loader and the model, a user's
    too, need not know of them."""
    others = {name: x for name, x in input_dict.items() if name != PAIR_WEIGHT}
    return {name: x for name, x in input_dict.items() if name == PAIR_WEIGHT}, others


def shard_pair_weight(
    pair_weight: dict[str, torch.Tensor], dims: ParallelDims, parallelism: ParallelismConfig
) -> dict[str, torch.Tensor]:
    """The pair weights, if any, on this rank's part of the sequence, as TorchTitan's context
    parallelism has placed inputs, labels and positions."""
    if not pair_weight or not dims.cp_enabled:
        return pair_weight
    (weight_BL,), _ = cp_shard(
        dims.get_mesh("cp"),
        (pair_weight[PAIR_WEIGHT],),
        None,
        parallelism.context_parallel_load_balancer,
    )
    return {PAIR_WEIGHT: weight_BL}
