"""Where a model's routers send tokens, and how nearly they chose otherwise: a case's probe."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from torchtitan.models.common.moe import TokenChoiceTopKRouter
from torchtitan.trainer import Trainer


@contextmanager
def record_routing(trainer: Trainer) -> Iterator[dict[str, Any]]:
    """What the routers do inside the block, filled in at its end. Collective.

    margin: the smallest gap, over all tokens and layers, between the selection scores of the last
    expert chosen and the first not chosen.
    tokens_per_expert: int64 [MoE layers, experts] of each rank; a recomputed layer counts twice.
    """
    modules = [module for part in trainer.model_parts for module in part.modules()]
    routers = [module for module in modules if isinstance(module, TokenChoiceTopKRouter)]
    margin = torch.tensor(torch.inf)
    counts = {router: torch.zeros(router.num_experts, dtype=torch.int64) for router in routers}

    def note(router: TokenChoiceTopKRouter, args: tuple[Any, ...], output: Any) -> None:
        _, expert_ids_BLK, scores_BLE = (_local(tensor) for tensor in output)
        choice_BLE = scores_BLE if args[1] is None else scores_BLE + _local(args[1])
        best = choice_BLE.topk(router.top_k + 1, dim=-1).values
        margin.clamp_(max=(best[..., -2] - best[..., -1]).min().item())
        counts[router] += expert_ids_BLK.flatten().bincount(minlength=router.num_experts)

    hooks = [router.register_forward_hook(note) for router in routers]
    findings: dict[str, Any] = {}
    yield findings
    for hook in hooks:
        hook.remove()
    dist.all_reduce(margin, op=dist.ReduceOp.MIN)
    ranks: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(ranks, torch.stack(list(counts.values())))
    findings |= {"margin": margin.item(), "tokens_per_expert": ranks}


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
