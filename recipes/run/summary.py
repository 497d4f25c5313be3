"""What a configuration amounts to: parameters, FLOPs per token, memory. Built on meta."""

import copy
import re
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torchtitan.config import TORCH_DTYPE_MAP
from torchtitan.distributed import ParallelDims
from torchtitan.models.common.decoder import Decoder
from torchtitan.tools.utils import set_default_dtype

from nitp.projector import PROJECTOR_NAME
from nitp.trainer import NITPTrainer

_GIB = 2**30


@dataclass(frozen=True, slots=True)
class Size:
    """Counts of one configuration. Parameters in numbers, FLOPs per trained token."""

    backbone: int
    """Parameters that inference has."""

    active: int
    """Of those, used by one token, embeddings included."""

    projector: int
    """Training-only parameters."""

    backbone_flops: int
    """Forward and backward of the backbone, by TorchTitan's estimate (attention scores of whole
    sequences, no recomputation)."""

    nitp_flops: int
    """Forward and backward of projector and cosine: 6 per projector weight and 18 d."""

    geometry_flops: int
    """Of measuring, in a step that is measured: 2 d^2 for each kind of state."""


def compute_size(config: NITPTrainer.Config) -> Size:
    """Build the model on meta and count."""
    assert config.model_spec is not None
    model_config = copy.deepcopy(config.model_spec.model)
    assert isinstance(model_config, Decoder.Config)
    model_config.update_from_config(config=config)
    dtype = TORCH_DTYPE_MAP[config.training.dtype]
    with torch.device("meta"), set_default_dtype(dtype):
        model = model_config.build()
    projector = routed = 0
    for name, param in model.named_parameters():
        if name.startswith(PROJECTOR_NAME):
            projector += param.numel()
        elif ".routed_experts." in name:
            routed += param.numel()
    total, flops = model_config.get_nparams_and_flops(model, config.training.seq_len)
    moe = next((layer.moe for layer in model_config.layers if layer.moe is not None), None)
    idle = 0 if moe is None else routed - routed * moe.router.top_k // moe.num_experts
    return Size(
        backbone=total - projector,
        active=total - projector - idle,
        projector=projector,
        backbone_flops=flops - 6 * projector,
        nitp_flops=6 * projector + 18 * model_config.dim if config.nitp.is_active else 0,
        geometry_flops=_count_measured_states(config) * 2 * model_config.dim**2,
    )


def _count_measured_states(config: NITPTrainer.Config) -> int:
    """Hidden states after and before the norm, targets, layers."""
    if not config.geometry.enable:
        return 0
    assert config.model_spec is not None and isinstance(config.model_spec.model, Decoder.Config)
    has_targets = config.nitp.is_active and config.nitp.uses_target
    depths = config.geometry.depths(len(config.model_spec.model.layers))
    return 2 + has_targets + len(depths)


def tabulate(sizes: Iterable[tuple[str, Size]]) -> str:
    """A Markdown table of sizes by flavour, each beside the sizes in the flavour's name:
    9b_a1b is 9 B in all, 1 B active; dense_2b is 2 B."""
    lines = [
        "| flavor | total | beside its name | active | beside its name | projector |",
        "|---|---|---|---|---|---|",
    ]
    for flavor, size in sizes:
        named = re.search(r"([\d.]+)b(?:_a([\d.]+)b)?$", flavor)
        total, active = named.groups() if named else (None, None)
        lines.append(
            f"| {flavor} | {size.backbone:,} | {_distance(size.backbone, total)} | "
            f"{size.active:,} | {_distance(size.active, active or total)} | {size.projector:,} |"
        )
    return "\n".join(lines)


def _distance(num_params: int, named: str | None) -> str:
    return "-" if named is None else f"{num_params / (float(named) * 1e9) - 1:+.1%}"


def summarize(config: NITPTrainer.Config, num_ranks: int) -> str:
    """The lines of --job.dry_run, for a job of `num_ranks` ranks."""
    size = compute_size(config)
    spec, nitp, training = config.model_spec, config.nitp, config.training
    assert spec is not None
    dims = ParallelDims.from_config(config.parallelism, num_ranks)
    num_shards = dims.dp_shard * dims.cp * dims.tp * dims.pp
    num_params = size.backbone + size.projector
    bytes_per_param = TORCH_DTYPE_MAP[training.dtype].itemsize
    params_gib = num_params * bytes_per_param / num_shards / _GIB
    share = size.nitp_flops / size.backbone_flops
    target = f"layer {nitp.target_layer}, weight {nitp.weight}" if nitp.is_active else "off"
    return "\n".join(
        [
            f"model                 {spec.name} {spec.flavor}",
            f"NITP                  {target}",
            f"parameters, backbone  {size.backbone:,} ({size.backbone / 1e9:.4f} B)",
            f"  active per token    {size.active:,} ({size.active / 1e9:.4f} B)",
            f"parameters, projector {size.projector:,} (training only)",
            f"FLOPs per token       {size.backbone_flops + size.nitp_flops:.4g}, "
            f"of which NITP {size.nitp_flops:.4g}: {share:.2%} more than without",
            f"  measured steps      {size.geometry_flops:.4g} more: "
            f"{size.geometry_flops / size.backbone_flops:.2%}",
            f"ranks                 {num_ranks} ({num_shards} shards of each parameter)",
            f"memory per rank       parameters {params_gib:.3f} GiB; with gradients and AdamW's "
            f"moments {4 * params_gib:.3f} GiB",
            "configuration is valid",
        ]
    )
