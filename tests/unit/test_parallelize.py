"""The projector's own FSDP2 unit: over which ranks, in which precision, summing."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, OffloadPolicy
from torchtitan.config import ParallelismConfig, TrainingConfig

from nitp import parallelize
from nitp.parallelize import shard_projector


def shard(monkeypatch, training: TrainingConfig, *, replicates: bool = False) -> dict[str, Any]:
    """What FSDP2 is told of the projector; a mesh is the names of its axes."""
    told: dict[str, Any] = {}

    class Sharded(FSDPModule, nn.Linear):
        def set_gradient_divide_factor(self, factor: float) -> None:
            told["divides_by"] = factor

    def fully_shard(module: nn.Module, **options: Any) -> None:
        told.update(options)
        module.__class__ = Sharded

    monkeypatch.setattr(parallelize, "fully_shard", fully_shard)
    dims: Any = SimpleNamespace(dp_replicate_enabled=replicates, get_mesh=tuple)
    projector: Any = nn.Linear(2, 2)
    shard_projector(projector, dims, training, ParallelismConfig(spmd_backend="partial_dtensor"))
    return told


@pytest.mark.parametrize("replicates", [False, True])
def test_gradients_are_summed_over_all_data_parallel_ranks(monkeypatch, replicates):
    """The loss is divided by global counts: an average would divide again."""
    told = shard(monkeypatch, TrainingConfig(), replicates=replicates)
    assert told["mesh"] == (("dp_replicate", "fsdp") if replicates else ("fsdp",))
    assert told["divides_by"] == 1.0


@pytest.mark.parametrize(
    ("param", "reduce"),
    [("bfloat16", "float32"), ("float32", "float32"), ("bfloat16", "bfloat16")],
)
def test_its_precision_is_that_of_the_runs_mixed_precision(monkeypatch, param, reduce):
    training = TrainingConfig(mixed_precision_param=param, mixed_precision_reduce=reduce)
    policy = shard(monkeypatch, training)["mp_policy"]
    assert policy.param_dtype == getattr(torch, param)
    assert policy.reduce_dtype == getattr(torch, reduce)
    assert not policy.cast_forward_inputs


@pytest.mark.parametrize("offloads", [False, True])
def test_it_is_offloaded_with_the_decoder(monkeypatch, offloads):
    policy = shard(monkeypatch, TrainingConfig(enable_cpu_offload=offloads))["offload_policy"]
    assert type(policy) is (CPUOffloadPolicy if offloads else OffloadPolicy)
