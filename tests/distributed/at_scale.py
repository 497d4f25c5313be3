"""One rank of a cluster, built and sharded on meta with the fake process group: no memory, no peer.

python -m tests.distributed.at_scale '[[num_ranks, rank, [overrides]], ...]' prints a JSON line for
each: what the rank holds of train_configs/nitp_9b.toml, by FSDP2 alone but for the overrides.
"""

import json
import os
import sys
from typing import Any

import torch

from recipes.build import build_torchtitan_config  # first: it chooses the platform

# isort: split

from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule
from torch.distributed.tensor import DTensor
from torchtitan.config import TORCH_DTYPE_MAP
from torchtitan.distributed import ParallelDims
from torchtitan.distributed.utils import init_distributed, set_spmd_backend
from torchtitan.tools.utils import set_default_dtype

from nitp.converter import with_nitp
from nitp.projector import PROJECTOR_NAME
from recipes.config.parts import build_nitp
from recipes.config.settings import resolve_settings


def build_rank(num_ranks: int, rank: int, overrides: list[str]) -> dict[str, Any]:
    """Parameters of this rank's model parts, whole and as it holds them."""
    os.environ |= {"NGPU": str(num_ranks), "RANK": str(rank), "WORLD_SIZE": str(num_ranks)}
    plain = ["--comm.mode=fake_backend", "--parallelism.expert_parallel_degree=1"]
    settings = resolve_settings("train_configs/nitp_9b.toml", [*plain, *overrides])
    # As on the cluster: without what the CPU platform changes.
    config = with_nitp(build_torchtitan_config(settings), build_nitp(settings))
    init_distributed(config.comm)
    dims = ParallelDims.from_config(config.parallelism, num_ranks)
    set_spmd_backend(config.parallelism.spmd_backend)
    spec = config.model_spec
    assert spec is not None
    spec.model.update_from_config(config=config)
    with torch.device("meta"), set_default_dtype(TORCH_DTYPE_MAP[config.training.dtype]):
        model = spec.model.build()
    options: dict[str, Any] = {
        "parallel_dims": dims,
        "training": config.training,
        "parallelism": config.parallelism,
        "compile_config": config.compile,
        "ac_config": config.activation_checkpoint,
        "dump_folder": config.dump_folder,
    }
    parts = []
    if dims.pp_enabled:
        assert spec.pipelining_fn is not None
        _, parts, _, _ = spec.pipelining_fn(
            model,
            device=torch.device("cpu"),
            model_config=spec.model,
            parallelize_fn=spec.parallelize_fn,
            loss_fn=config.loss.build(compile_config=config.compile),
            **options,
        )
    else:
        parts = [spec.parallelize_fn(model, **options)]
    params = {name: param for part in parts for name, param in part.named_parameters()}
    assert all(isinstance(param, DTensor) for param in params.values())
    return {
        "num_params": sum(param.numel() for param in params.values()),
        "num_local_params": sum(param.to_local().numel() for param in params.values()),
        "projector": sorted(name for name in params if name.startswith(PROJECTOR_NAME)),
        "offloading": sorted(
            name.rpartition(".")[2]
            for part in parts
            for name, module in part.named_modules()
            if isinstance(module, FSDPModule) and offloads(module)
        ),
        "num_layers": sum(len(part.layers) for part in parts),
    }


def offloads(module: FSDPModule) -> bool:
    """Whether the parameters of this FSDP2 unit wait in CPU memory."""
    groups = module._get_fsdp_state()._fsdp_param_groups
    return any(isinstance(group.offload_policy, CPUOffloadPolicy) for group in groups)


def main() -> None:
    for arguments in json.loads(sys.argv[1]):
        # A process each: there is one process group to a process.
        if os.fork() == 0:
            print(json.dumps(build_rank(*arguments)), flush=True)
            os._exit(0)
        _, status = os.wait()
        if status:
            sys.exit(f"failed: {arguments}")


if __name__ == "__main__":
    main()
