"""Parallel degrees that do not fit are refused at start-up, by name, for any model."""

import re

import pytest
from torchtitan.distributed import ParallelDims

from recipes.config import load_config
from recipes.config.degrees import check_expert_ranks, check_ranks, count_fewest_ranks

DENSE, MOE = "train_configs/debug.toml", "train_configs/debug_moe.toml"
TITAN = ["--model.name=qwen3", "--model.flavor=30B-A3B"]
EP = "--parallelism.expert_parallel_degree={}"
TP, CP = "--parallelism.tensor_parallel_degree={}", "--parallelism.context_parallel_degree={}"
REPLICATE = "--parallelism.data_parallel_replicate_degree={}"
NO_SP, BASELINE = "--parallelism.enable_sequence_parallel=false", "--nitp.enable=false"


@pytest.mark.parametrize(
    ("config", "arguments", "message"),
    [
        (DENSE, [EP.format(2)],
         "parallelism.expert_parallel_degree (2) must be 1: the model has no experts."),
        (MOE, [EP.format(3)],
         "parallelism.expert_parallel_degree (3) must divide the model's number of experts (8)."),
        (MOE, [EP.format(3), BASELINE],
         "parallelism.expert_parallel_degree (3) must divide the model's number of experts (8)."),
        (MOE, [*TITAN, EP.format(5)],
         "parallelism.expert_parallel_degree (5) must divide the model's number of experts (128)."),
        (DENSE, [TP.format(4)],
         "parallelism.tensor_parallel_degree (4) must divide the model's query heads (6)."),
        (DENSE, [TP.format(3), "--model.vocab_size=8193"],
         "parallelism.tensor_parallel_degree (3) must divide the model's key-value heads (2)."),
        (DENSE, [TP.format(2), "--model.vocab_size=8193"],
         "parallelism.tensor_parallel_degree (2) must divide the model's vocabulary (8193)."),
        (DENSE, [TP.format(2), "--model.ffn_dim=511"],
         "parallelism.tensor_parallel_degree (2) must divide the model's feed-forward width (511)"),
        (MOE, [TP.format(2), "--model.expert_dim=72"],
         "parallelism.tensor_parallel_degree (2) must divide the experts' hidden width (72) into "
         "multiples of 8"),
        (DENSE, [CP.format(2), "--training.seq_len=384"],
         "training.seq_len (384) must be a multiple of 128, the block size of attention masks, "
         "times parallelism.context_parallel_degree (2)."),
        (MOE, [TP.format(2), EP.format(2), NO_SP, BASELINE, "--training.seq_len=251"],
         "training.seq_len (251) must be a multiple of parallelism.tensor_parallel_degree (2)"),
        (MOE, [EP.format(2), "--training.disable_cuda_graphs=false"],
         "Set HybridEP non_blocking_capacity_factor, or use MinimalAsyncEP, or set "
         "--training.disable_cuda_graphs."),
    ],
)  # fmt: skip
def test_degrees_that_do_not_fit_the_model_are_refused_by_name(config, arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        load_config(config, arguments)


def test_experts_that_stay_whole_may_have_any_width():
    load_config(MOE, [TP.format(2), EP.format(2), "--model.expert_dim=72"])


def test_a_run_refuses_before_it_builds_anything():
    """The check of load_config, for a configuration that a program has put together."""
    config = load_config(MOE)
    config.parallelism.expert_parallel_degree = 3
    with pytest.raises(ValueError, match=re.escape("expert_parallel_degree (3) must divide")):
        config.build()


@pytest.mark.parametrize(
    ("num_ranks", "overrides", "message"),
    [
        (2, [EP.format(4)],
         "parallelism.expert_parallel_degree (4) must divide the product of the data-parallel "
         "shard (2), context-parallel (1) and tensor-parallel (1) degrees, 2."),
        (2, [EP.format(2), REPLICATE.format(2)],
         "parallelism.expert_parallel_degree (2) must divide the product of the data-parallel "
         "shard (1), context-parallel (1) and tensor-parallel (1) degrees, 1."),
    ],
)  # fmt: skip
def test_experts_that_the_ranks_cannot_hold_are_refused(num_ranks, overrides, message):
    config = load_config(MOE, overrides)
    with pytest.raises(ValueError, match=re.escape(message)):
        check_ranks(config, num_ranks)
    with pytest.raises(ValueError, match=re.escape(message)):
        check_expert_ranks(ParallelDims.from_config(config.parallelism, num_ranks))


@pytest.mark.parametrize(
    ("overrides", "num_ranks"),
    [
        ([], 1),
        ([TP.format(2)], 2),
        ([EP.format(8)], 8),
        ([TP.format(2), EP.format(4)], 4),
        ([CP.format(2), EP.format(2), REPLICATE.format(2)], 4),
        (["--parallelism.data_parallel_shard_degree=6"], 6),
    ],
)
def test_the_fewest_ranks_of_a_dry_run_fit(overrides, num_ranks):
    config = load_config(MOE, [*overrides, "--training.global_batch_size=-1"])
    assert count_fewest_ranks(config.parallelism) == num_ranks
    check_ranks(config, num_ranks)
    if num_ranks > 1 and "data_parallel_shard" not in overrides[0]:
        with pytest.raises(ValueError, match="parallelism"):
            check_ranks(config, num_ranks // 2)
