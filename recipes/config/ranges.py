"""What numbers must be, option by option.

Left to TorchTitan and PyTorch, these divide by zero, overflow, or train nothing or nonsense without
a word. What NITP's, the data's and the model's own configurations check is theirs. Free of torch.
"""

from collections.abc import Callable
from dataclasses import MISSING
from math import inf
from typing import Any, NamedTuple

from recipes.config.schema import load_schema
from recipes.config.values import show_value


class Range(NamedTuple):
    """What the values of an option have in common."""

    words: str
    """Complete "must be ..."."""

    holds: Callable[[Any], bool]


AT_LEAST_1 = Range("at least 1", lambda n: n >= 1)
AT_LEAST_0 = Range("at least 0", lambda n: n >= 0)
POSITIVE = Range("finite and greater than 0", lambda x: 0 < x < inf)
NOT_NEGATIVE = Range("finite and at least 0", lambda x: 0 <= x < inf)
SHARE = Range("from 0 to 1", lambda x: 0 <= x <= 1)
COUNT_OR_FREE = Range("at least 1, or -1", lambda n: n >= 1 or n == -1)
SECONDS = Range("from 1 to 2**31 - 1", lambda n: 1 <= n < 2**31)
"""Of which PyTorch makes milliseconds."""

RANGES: dict[str, Range] = {
    "training.steps": AT_LEAST_1,
    "training.seq_len": AT_LEAST_1,
    "training.local_batch_size": AT_LEAST_1,
    "training.global_batch_size": COUNT_OR_FREE,
    "training.max_norm": Range("greater than 0", lambda x: x > 0),  # infinite: no clipping
    "training.gc_freq": AT_LEAST_1,
    "optimizer.lr": POSITIVE,
    "optimizer.betas": Range(
        "at least 0 and less than 1, each", lambda b: all(0 <= beta < 1 for beta in b)
    ),
    "optimizer.eps": NOT_NEGATIVE,
    "optimizer.weight_decay": NOT_NEGATIVE,
    "lr_scheduler.warmup_steps": AT_LEAST_0,
    "lr_scheduler.total_steps": AT_LEAST_1,
    "lr_scheduler.decay_ratio": SHARE,
    "lr_scheduler.min_lr_factor": SHARE,
    "model.num_experts": AT_LEAST_0,
    "model.num_shared_experts": AT_LEAST_0,
    "model.expert_bias_rate": NOT_NEGATIVE,
    "model.rope_theta": POSITIVE,
    "model.norm_eps": NOT_NEGATIVE,
    "model.init_std": POSITIVE,
    "model.max_seq_len": AT_LEAST_1,
    "parallelism.data_parallel_replicate_degree": AT_LEAST_1,
    "parallelism.data_parallel_shard_degree": COUNT_OR_FREE,
    "parallelism.tensor_parallel_degree": AT_LEAST_1,
    "parallelism.context_parallel_degree": AT_LEAST_1,
    "parallelism.expert_parallel_degree": AT_LEAST_1,
    "parallelism.pipeline_parallel_degree": AT_LEAST_1,
    "parallelism.pipeline_parallel_microbatch_size": AT_LEAST_1,
    "parallelism.pipeline_parallel_layers_per_stage": AT_LEAST_1,
    "parallelism.pipeline_parallel_first_stage_less_layers": AT_LEAST_0,
    "parallelism.pipeline_parallel_last_stage_less_layers": AT_LEAST_0,
    "activation_checkpoint.memory_budget": SHARE,
    "loss.num_chunks": AT_LEAST_1,
    "metrics.log_freq": AT_LEAST_1,
    "validation.freq": AT_LEAST_1,
    "validation.steps": COUNT_OR_FREE,
    "checkpoint.interval": AT_LEAST_1,
    "checkpoint.keep_latest_k": Range("0 (all) or at least 2", lambda n: n == 0 or n >= 2),
    "checkpoint.load_step": Range("at least 0, or -1 (the latest)", lambda n: n >= -1),
    "comm.init_timeout_seconds": SECONDS,
    "comm.train_timeout_seconds": SECONDS,
    "comm.trace_buf_size": AT_LEAST_0,
    "profiler.profile_freq": AT_LEAST_1,
    "profiler.profiler_warmup": AT_LEAST_0,
    "profiler.profiler_active": AT_LEAST_1,
    "profiler.profiler_repeat": AT_LEAST_0,
    "profiler.profiler_skip_first": AT_LEAST_0,
    "profiler.profiler_skip_first_wait": AT_LEAST_0,
    "profiler.memory_snapshot_freq": AT_LEAST_1,
    "profiler.memory_snapshot_max_entries": AT_LEAST_1,
    "debug.seed": Range("from 0 to 2**63 - 1", lambda n: 0 <= n < 2**63),
}
"""Option -> range. None (not set) is always in range."""


def check_ranges(values: dict[str, dict[str, Any]]) -> None:
    """Raise ValueError naming the first option whose value is out of range."""
    schema = load_schema()
    for option, given in RANGES.items():
        table, _, key = option.partition(".")
        value = values[table].get(key)  # the model's and some modes' options are there if set
        if value is not None and not given.holds(value):
            default = schema[table][key].default
            remedy = f"The default is {show_value(default)}."
            if default is MISSING:  # of the model's shape
                remedy = "Leave it out for the flavor's."
            raise ValueError(f"{option} ({value}) must be {given.words}. {remedy}")
