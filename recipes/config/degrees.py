"""Parallel degrees that do not fit the model, the ranks or each other, refused by name at start-up.

The rules are TorchTitan's and its kernels'; left to them, they show up on every rank of a started
job, in a mesh, a forward pass or a kernel.
"""

import math
from types import SimpleNamespace
from typing import Any

from torchtitan.config import ParallelismConfig
from torchtitan.distributed import ParallelDims
from torchtitan.models.common.decoder import Decoder
from torchtitan.models.common.feed_forward import FeedForward
from torchtitan.models.common.moe import GroupedExperts
from torchtitan.trainer import Trainer

from nitp._torchtitan import ATTENTION_BLOCK_SIZE, count_stages, split_into_stages
from recipes.config.choices import check_choice

_GROUPED_MM_ALIGNMENT = 8
"""Rows of a grouped matrix product are multiples of 16 bytes: 8 values in bfloat16."""


def check_degrees(config: Trainer.Config) -> None:
    """Raise ValueError naming the degree that the decoder of `config` cannot be cut by."""
    assert config.model_spec is not None and isinstance(config.model_spec.model, Decoder.Config)
    model, parallelism = config.model_spec.model, config.parallelism
    experts = [node for _, node, _, _ in model.traverse(GroupedExperts.Config)]
    _check_experts(experts, parallelism.expert_parallel_degree)
    tp = parallelism.tensor_parallel_degree
    if tp > 1:
        _check_tensor_degree(model, tp)
        if parallelism.expert_parallel_degree == 1:
            _check_expert_width(experts, tp)
    if parallelism.pipeline_parallel_degree > 1 and parallelism.module_fqns_per_model_part:
        _check_parts(len(model.layers), parallelism.module_fqns_per_model_part)
    if parallelism.pipeline_parallel_degree > 1 and len(config.optimizer.param_groups) > 1:
        _check_stage_groups(model, parallelism)
    _check_sequence(config)
    if config.training.seq_len > model.max_seq_len:
        raise ValueError(
            f"training.seq_len ({config.training.seq_len}) must be at most the longest sequence "
            f"that the model's positions are built for (model.max_seq_len), {model.max_seq_len}. "
            "Lower it, or choose another model."
        )


def check_ranks(config: Trainer.Config, num_ranks: int) -> None:
    """Raise ValueError unless `num_ranks` ranks fit the degrees and can share the global batch.

    TorchTitan asserts the same only after the process group is up, on every rank.
    """
    try:
        dims = ParallelDims.from_config(config.parallelism, num_ranks)
    except AssertionError as error:
        raise ValueError(f"parallelism: {error} ({num_ranks} ranks)") from error
    check_expert_ranks(dims)
    training, dp = config.training, dims.dp_replicate * dims.dp_shard
    # -1 stands for one batch per rank; any number of ranks fits.
    is_free = training.global_batch_size < 0
    if not is_free and training.global_batch_size % (training.local_batch_size * dp):
        raise ValueError(
            f"training.global_batch_size ({training.global_batch_size}) must be a multiple of "
            f"training.local_batch_size ({training.local_batch_size}) times the data-parallel "
            f"degree ({dp}). Change one of them or the number of ranks."
        )


def count_fewest_ranks(parallelism: ParallelismConfig) -> int:
    """The smallest number of ranks that the degrees allow."""
    cp_tp = parallelism.context_parallel_degree * parallelism.tensor_parallel_degree
    dp_shard = parallelism.data_parallel_shard_degree
    if dp_shard == -1:  # as many as there are: enough to hold every expert
        dp_shard = math.lcm(parallelism.expert_parallel_degree, cp_tp) // cp_tp
    replicas = parallelism.data_parallel_replicate_degree * parallelism.pipeline_parallel_degree
    return replicas * dp_shard * cp_tp


def check_expert_ranks(dims: ParallelDims) -> None:
    """Raise ValueError unless the experts can be spread over the ranks.

    They share the ranks that hold one copy of the dense weights, in a pipeline stage.
    """
    num_ranks = dims.dp_shard * dims.cp * dims.tp
    if num_ranks % dims.ep:
        raise ValueError(
            f"parallelism.expert_parallel_degree ({dims.ep}) must divide the product of the data-"
            f"parallel shard ({dims.dp_shard}), context-parallel ({dims.cp}) and tensor-parallel "
            f"({dims.tp}) degrees, {num_ranks}. Change one of them or the number of ranks."
        )


def _check_experts(experts: list[GroupedExperts.Config], ep: int) -> None:
    if ep == 1:
        return
    if not experts:
        raise ValueError(
            f"parallelism.expert_parallel_degree ({ep}) must be 1: the model has no experts. Set "
            "it to 1."
        )
    num_experts = experts[0].num_experts
    if num_experts % ep:
        raise ValueError(
            f"parallelism.expert_parallel_degree ({ep}) must divide the model's number of "
            f"experts ({num_experts}). Set a divisor."
        )


def _check_tensor_degree(model: Decoder.Config, tp: int) -> None:
    sizes = [("vocabulary", model.vocab_size)]
    attention = model.first_attention
    if attention is not None:
        # Not in multi-head latent attention; None means one per query head.
        num_kv_heads = getattr(attention, "n_kv_heads", None) or attention.n_heads
        sizes += [("query heads", attention.n_heads), ("key-value heads", num_kv_heads)]
    for layer in model.layers:
        # TorchTitan would train on, with weights that grow to a multiple where they are gathered.
        ffns = [node for _, node, _, _ in layer.traverse(FeedForward.Config)]
        sizes += [("feed-forward width", node.w1.out_features) for node in ffns]
    for what, size in sizes:
        if size % tp:
            raise ValueError(
                f"parallelism.tensor_parallel_degree ({tp}) must divide the model's {what} "
                f"({size}). Set a divisor or change the model."
            )


def _check_expert_width(experts: list[GroupedExperts.Config], tp: int) -> None:
    """Without expert parallelism, tensor parallelism cuts every expert's hidden width."""
    for width in {node.hidden_dim for node in experts}:
        if width % (tp * _GROUPED_MM_ALIGNMENT):
            raise ValueError(
                f"parallelism.tensor_parallel_degree ({tp}) must divide the experts' hidden width "
                f"({width}) into multiples of {_GROUPED_MM_ALIGNMENT}, which their kernel needs. "
                "Set another degree, or parallelism.expert_parallel_degree, which keeps experts "
                "whole."
            )


def _check_parts(num_layers: int, parts: list[list[str]]) -> None:
    """TorchTitan leaves out of the model what no part names, and passes over unknown names."""
    option = "parallelism.module_fqns_per_model_part"
    (expected,) = split_into_stages(1, num_layers)
    given = [name for part in parts for name in part]
    for name in given:
        check_choice(option, name, expected)
    missing = [name for name in expected if name not in given]
    if missing:
        raise ValueError(f"{option} must have {', '.join(missing)} in one of its parts. Add that.")
    in_order = [name for part in parts for name in sorted(part, key=expected.index)]
    if in_order != expected:
        raise ValueError(
            f"{option} ({parts}) must have each module once, in the model's order: "
            f"{', '.join(expected)}."
        )


def _check_stage_groups(model: Decoder.Config, parallelism: ParallelismConfig) -> None:
    """The optimizer is built per stage, and each of its groups must have a parameter there."""
    stages = parallelism.module_fqns_per_model_part
    if stages is None:
        dims: Any = SimpleNamespace(pp=parallelism.pipeline_parallel_degree)  # all that it reads
        stages = split_into_stages(*count_stages(dims, parallelism, model))
    for number, modules in enumerate(stages, 1):
        if set(modules) <= {"tok_embeddings", "norm"} or set(modules) == {"lm_head"}:
            raise ValueError(
                "optimizer.decay_norms_and_embeddings (false) needs weights that decay and weights "
                f"that do not in every pipeline stage, but stage {number} of {len(stages)} has "
                f"{' and '.join(modules)} alone. Set it to true, or give that stage a layer by "
                f"parallelism.pipeline_parallel_degree ({parallelism.pipeline_parallel_degree}), "
                "parallelism.pipeline_parallel_layers_per_stage or "
                "parallelism.module_fqns_per_model_part."
            )


def _check_sequence(config: Trainer.Config) -> None:
    parallelism, seq_len = config.parallelism, config.training.seq_len
    tp, cp = parallelism.tensor_parallel_degree, parallelism.context_parallel_degree
    if cp > 1 and seq_len % (cp * ATTENTION_BLOCK_SIZE):
        raise ValueError(
            f"training.seq_len ({seq_len}) must be a multiple of {ATTENTION_BLOCK_SIZE}, the block "
            f"size of attention masks, times parallelism.context_parallel_degree ({cp})."
        )
    # Expert parallelism deals tokens by slices of the sequence even where layers hold it whole.
    is_sliced = parallelism.enable_sequence_parallel or parallelism.expert_parallel_degree > 1
    if is_sliced and seq_len % (tp * cp):
        raise ValueError(
            f"training.seq_len ({seq_len}) must be a multiple of "
            f"parallelism.tensor_parallel_degree ({tp}) times "
            f"parallelism.context_parallel_degree ({cp})."
        )
