"""The CPU platform: the same training where there is no accelerator. GPU runs never import it.

`recipes.platform` calls `activate()` before torchtitan is imported, and `adapt(config)` on the
finished configuration.
"""

import copy
import dataclasses
import functools
import os
import platform
import resource
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor


def activate() -> None:
    """Make TorchTitan resolve its device to the CPU.

    Raises RuntimeError if torchtitan is imported already: it has resolved its device by then.
    """
    if torch._utils._get_available_device_type is _get_cpu:
        return
    if "torchtitan" in sys.modules:
        raise RuntimeError("without an accelerator, import recipes.platform before torchtitan")
    torch._utils._get_available_device_type = _get_cpu
    # torch.cpu lacks what TorchTitan's memory monitor and barriers ask of a device module.
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for name, function in {
        "get_device_name": lambda device=None: platform.processor() or platform.machine(),
        "get_device_properties": lambda device=None: SimpleNamespace(total_memory=memory_bytes),
        "memory_stats": _memory_stats,
        "reset_peak_memory_stats": lambda: None,
        "empty_cache": lambda: None,
        "current_device": lambda: 0,
        "device_count": lambda: 1,
    }.items():
        setattr(torch.cpu, name, function)


def _get_cpu() -> str:
    return "cpu"


def _memory_stats(device: Any = None) -> dict[str, int]:
    """This process's peak resident memory since it started, in TorchTitan's names."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak_bytes = peak if sys.platform == "darwin" else peak * 1024
    return {"active_bytes.all.peak": peak_bytes, "reserved_bytes.all.peak": peak_bytes}


def adapt(config: Any) -> Any:
    """A copy of the Trainer.Config `config` that runs on CPU ranks with gloo.

    Attention, experts and their token exchange are swapped by TorchTitan's own override mechanism,
    CUDA graphs are off, block masks are built eagerly (compiling their builder takes longer than a
    debug step), and initial values do not depend on the number of ranks. Raises ValueError for what
    only an accelerator has.
    """
    if config.training.enable_cpu_offload:
        raise ValueError(
            "training.enable_cpu_offload (true) has no meaning on CPU, where everything is. "
            "Set it to false."
        )
    if config.checkpoint.async_mode == "async_with_pinned_mem":
        raise ValueError(
            'checkpoint.async_mode ("async_with_pinned_mem") needs an accelerator. Use "async".'
        )
    from torch.distributed.tensor.experimental._context_parallel import _attention as cp_attention
    from torch.nn.attention.flex_attention import create_block_mask
    from torchtitan.models.common import attention
    from torchtitan.protocols.module import Module
    from torchtitan.tools import utils

    attention._compiled_create_block_mask = create_block_mask
    cp_attention._compiled_create_block_mask = create_block_mask  # type: ignore[assignment]
    # No peak FLOPS is known for a CPU: the utilisation is not a number, rather than a wrong one.
    utils.get_peak_flops = lambda device_name: float("nan")

    imports = [
        *config.override.imports,
        "recipes.platform.overrides.sdpa_attention",
        "recipes.platform.overrides.uneven_token_dispatcher",
    ]
    if config.training.mixed_precision_param == "float32":
        imports.append("recipes.platform.overrides.float32_experts")
    spec = dataclasses.replace(
        config.model_spec,
        model=copy.deepcopy(config.model_spec.model),
        parallelize_fn=_reduce_by_sum(config.model_spec.parallelize_fn),
    )
    for _, module, _, _ in spec.model.traverse(Module.Config, recurse=True):
        if module.param_init is not None:
            module.param_init = {k: _init_whole(fn) for k, fn in module.param_init.items()}
    return dataclasses.replace(
        config,
        override=dataclasses.replace(config.override, imports=imports),
        training=dataclasses.replace(config.training, disable_cuda_graphs=True),
        model_spec=spec,
    )


def _init_whole(init: Callable[[torch.Tensor], Any]) -> Callable[[torch.Tensor], None]:
    """`init` on the whole tensor of a sharded parameter, of which each rank keeps its part.

    DTensor has no random state of its own on CPU: drawn shard by shard, ranks of one seed would
    repeat each other. So drawn, the initial values are those of one process, on any layout.
    """

    def init_whole(param: torch.Tensor) -> None:
        if not isinstance(param, DTensor):
            init(param)
            return
        whole = torch.empty(param.shape, dtype=param.dtype)
        init(whole)
        mesh, placements = param.device_mesh, param.placements
        param.copy_(distribute_tensor(whole, mesh, placements, src_data_rank=None))

    return init_whole


@functools.cache
def _reduce_by_sum(parallelize: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    @functools.wraps(parallelize)
    def wrapped(*args: Any, **kwargs: Any) -> nn.Module:
        model = parallelize(*args, **kwargs)
        for module in model.modules():
            if isinstance(module, FSDPModule):
                # gloo has no pre-multiplied sum, FSDP2's default reduction.
                module.set_force_sum_reduction_for_comms(True)
        return model

    return wrapped


def build_float32_config(model: Any) -> Any:
    """A copy of the Decoder.Config `model` that computes in float32, on the CPU or any device."""
    from torch.nn.attention.flex_attention import create_block_mask
    from torchtitan.models.common import attention, moe

    from recipes.platform.overrides import float32_experts, sdpa_attention

    attention._compiled_create_block_mask = create_block_mask
    model = copy.deepcopy(model)
    for target, stand_in in (
        (attention.FlexAttention.Config, sdpa_attention),
        (moe.GroupedExperts.Config, float32_experts),
    ):
        for _, config, parent, name in list(model.traverse(target)):
            if type(config) is target:
                setattr(parent, name, stand_in(config))
    return model
