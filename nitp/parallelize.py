"""The projector's place in sharding: one FSDP2 unit of its own, on the last pipeline stage.

The decoder itself is split and parallelised by its model's own functions, which never see the
projector.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

from torch import nn
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)
from torchtitan.config import TORCH_DTYPE_MAP, CompileConfig, ParallelismConfig, TrainingConfig
from torchtitan.distributed import ParallelDims
from torchtitan.protocols.module import Module

from nitp._torchtitan import resolve_fsdp_mesh
from nitp.decoder import NITPDecoder, TappedLayers
from nitp.projector import PROJECTOR_NAME


def wrap_parallelize(parallelize_decoder: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """The model's own `parallelize_fn`, followed by the projector's sharding.

    The projector leaves the decoder meanwhile: it must be neither in the decoder's FSDP2 units
    (its gathers belong to the loss, not to forward), nor checkpointed or compiled with it.
    """

    @wraps(parallelize_decoder)
    def parallelize(
        model: nn.Module,
        *,
        parallel_dims: ParallelDims,
        training: TrainingConfig,
        parallelism: ParallelismConfig,
        compile_config: CompileConfig,
        **kwargs: Any,
    ) -> nn.Module:
        projector = _take_projector(model)
        if isinstance(model, NITPDecoder) and not isinstance(model.layers, TappedLayers):
            model.layers = TappedLayers()  # a pipeline stage without layers
        model = parallelize_decoder(
            model,
            parallel_dims=parallel_dims,
            training=training,
            parallelism=parallelism,
            compile_config=compile_config,
            **kwargs,
        )
        if projector is not None:
            if compile_config.enable and "model" in compile_config.components:
                # As the decoder does its layers: before FSDP2, which gathers around the call.
                projector.compile(backend=compile_config.backend, fullgraph=True)
            shard_projector(projector, parallel_dims, training, parallelism)
            setattr(model, PROJECTOR_NAME, projector)
        return model

    return parallelize


def wrap_pipelining(pipeline_decoder: Callable[..., Any]) -> Callable[..., Any]:
    """The model's own `pipelining_fn`; the stage that holds the unembedding holds the projector."""

    @wraps(pipeline_decoder)
    def pipeline(
        model: nn.Module, *, parallelize_fn: Callable[..., nn.Module], **kwargs: Any
    ) -> Any:
        projector = _take_projector(model)

        def parallelize_stage(stage: nn.Module, **stage_kwargs: Any) -> nn.Module:
            if projector is not None and stage.lm_head is not None:
                setattr(stage, PROJECTOR_NAME, projector)
            return parallelize_fn(stage, **stage_kwargs)

        return pipeline_decoder(model, parallelize_fn=parallelize_stage, **kwargs)

    return pipeline


def _take_projector(model: nn.Module) -> Module | None:
    """The projector, which leaves `model`; the name stays, last in the order of modules.

    None for a plain decoder too: NITP may be turned off after the model was converted.
    """
    if not isinstance(model, NITPDecoder):
        return None
    projector: Module | None = getattr(model, PROJECTOR_NAME)
    setattr(model, PROJECTOR_NAME, None)
    return projector


def shard_projector(
    projector: Module,
    parallel_dims: ParallelDims,
    training: TrainingConfig,
    parallelism: ParallelismConfig,
) -> None:
    """Shard P over the data-parallel ranks, in the mixed precision of the decoder's layers.

    Kept whole after forward: the loss calls it once per chunk and gathers and reshards it itself.
    """
    if parallelism.spmd_backend == "partial_dtensor":
        axes = ["dp_replicate", "fsdp"] if parallel_dims.dp_replicate_enabled else ["fsdp"]
        mesh, mesh_dims = parallel_dims.get_mesh(axes), None
    else:
        projector.parallelize(parallel_dims)
        mesh, mesh_dims = resolve_fsdp_mesh(parallel_dims)
    fully_shard(
        projector,
        mesh=mesh,
        dp_mesh_dims=mesh_dims,
        mp_policy=MixedPrecisionPolicy(
            param_dtype=TORCH_DTYPE_MAP[training.mixed_precision_param],
            reduce_dtype=TORCH_DTYPE_MAP[training.mixed_precision_reduce],
            cast_forward_inputs=False,
        ),
        reshard_after_forward=False,
        offload_policy=CPUOffloadPolicy() if training.enable_cpu_offload else OffloadPolicy(),
    )
    assert isinstance(projector, FSDPModule)
    # Losses are already divided by global counts; FSDP2 must sum gradients, not average them.
    projector.set_gradient_divide_factor(1.0)
