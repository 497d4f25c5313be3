"""Every upstream name that is not part of a documented interface, one comment each.

Some must stand where they take effect:

nitp/loss.py                overrides ChunkedLossWrapper._gradient_backprop, as its docstring
                            invites.
recipes/run/checkpoint.py,   override steps of CheckpointManager, whose public methods have no seam
recipes/run/checkpoint_loading.py
                            between them: _load, _find_load_step, _states_to_load, _save,
                            _should_save, _wait_for_saving, _purge_stale_checkpoints; and call its
                            _create_checkpoint_id and _should_purge.
recipes/run/tensorboard.py  overrides MetricsProcessor._build_metric_logger, which alone names the
                            folder of the curves.
recipes/platform/           without an accelerator only, and in part before torchtitan may be
                            imported: replaces torch._utils._get_available_device_type and both
                            _compiled_create_block_mask (TorchTitan's, and PyTorch's of
                            torch.distributed.tensor.experimental._context_parallel._attention);
                            overrides AllToAllTokenDispatcher._dispatch_token_exchange and
                            _combine_token_exchange with all_to_all_single of
                            torch.distributed._functional_collectives; calls torch._grouped_mm.

tests/contracts/test_upstream.py and test_run_seams.py freeze their signatures, so an upgrade that
moves one fails there and not in a training run; test_layers.py finds those that are not named here.
"""

from typing import Any

import spmd_types as spmd

# FlexAttention's masks are built, and sharded by context parallelism, in blocks of so many tokens.
from torch.nn.attention.flex_attention import _DEFAULT_SPARSE_BLOCK_SIZE as ATTENTION_BLOCK_SIZE

# Buffer of per-chunk gradients that ends as one gradient of the whole sequence.
from torchtitan.components.loss import GradAccumulator

# What the metrics processor logs through: a container whose list of loggers has no public name.
from torchtitan.components.metrics import BaseLogger, LoggerContainer, TensorBoardLogger

# Which rank logs: the first that has the loss.
from torchtitan.components.metrics import _get_metrics_rank as get_metrics_rank

# Shards a tensor's sequence as context parallelism shards the model's inputs.
from torchtitan.distributed.context_parallel.api import cp_shard

# The mesh that FSDP2 shards dense weights over, and which of its axes are data parallel.
from torchtitan.distributed.full_dtensor import resolve_fsdp_mesh

# How many pipeline stages a model has, and which modules each holds.
from torchtitan.distributed.pipeline_parallel import (
    _generate_llm_fqn_per_model_part as split_into_stages,
)
from torchtitan.distributed.pipeline_parallel import _get_pipeline_metadata as count_stages

# Declares a dense weight's placement on the (dp, cp, tp) mesh; under the default spmd_types backend
# FSDP2 refuses parameters without one.
from torchtitan.models.common.decoder_sharding import dense_param_placement
from torchtitan.protocols.sharding import SpmdLayout

__all__ = [
    "ATTENTION_BLOCK_SIZE",
    "GradAccumulator",
    "built_class",
    "count_stages",
    "cp_shard",
    "flush_tensorboard",
    "get_metrics_rank",
    "replicated_weight_sharding",
    "resolve_fsdp_mesh",
    "skip_lm_head",
    "split_into_stages",
]


def built_class(config: Any) -> type:
    """The class that a Config of TorchTitan's builds: the one that it is nested in."""
    assert config._owner is not None
    return config._owner


def replicated_weight_sharding() -> SpmdLayout:
    """Placement of a weight that every model-parallel rank holds whole."""
    return dense_param_placement(tp=spmd.R)


def skip_lm_head(decoder: Any) -> None:
    """Let a decoder return hidden states instead of logits, as TorchTitan's trainer does for a loss
    that applies the unembedding chunk by chunk."""
    decoder._skip_lm_head = True


def flush_tensorboard(logger: BaseLogger) -> None:
    """Put what has been logged into the file; TorchTitan leaves it in memory for two minutes."""
    for each in logger._loggers if isinstance(logger, LoggerContainer) else [logger]:
        if isinstance(each, TensorBoardLogger):
            each.writer.flush()
