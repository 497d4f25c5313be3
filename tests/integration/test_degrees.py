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
PP, PARTS = "--parallelism.pipeline_parallel_degree={}", "--parallelism.module_fqns_per_model_part="
LAYERS_PER_STAGE = "--parallelism.pipeline_parallel_layers_per_stage=1"
INTERLEAVED = "--parallelism.pipeline_parallel_schedule=Interleaved1F1B"
TWO_LAYERS = ["--model.num_layers=2", "--nitp.target_layer=1", "--training.disable_cuda_graphs"]
NO_DECAY = "--optimizer.decay_norms_and_embeddings=false"
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


@pytest.mark.parametrize(
    ("arguments", "alone"),
    [
        ([PP.format(4)], "stage 1 of 4 has tok_embeddings alone"),
        ([PP.format(2), INTERLEAVED], "stage 1 of 4 has tok_embeddings alone"),
        ([PP.format(2), INTERLEAVED, LAYERS_PER_STAGE], "stage 1 of 4 has tok_embeddings alone"),
        ([PP.format(2), f"{PARTS}[['tok_embeddings'],['layers.0','layers.1','norm','lm_head']]"],
         "stage 1 of 2 has tok_embeddings alone"),
        ([PP.format(2), BASELINE,
          f"{PARTS}[['tok_embeddings','layers.0','layers.1','norm'],['lm_head']]"],
         "stage 2 of 2 has lm_head alone"),
    ],
)  # fmt: skip
def test_a_stage_whose_weights_are_all_spared_decay_or_none_is_refused(arguments, alone):
    load_config(DENSE, TWO_LAYERS, arguments)
    message = f"optimizer.decay_norms_and_embeddings (false) needs .* but {re.escape(alone)}. Set "
    with pytest.raises(ValueError, match=message.replace("(false)", r"\(false\)")) as error:
        load_config(DENSE, TWO_LAYERS, [*arguments, NO_DECAY])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "arguments",
    [
        [PP.format(2)],
        [PP.format(2), f"{PARTS}[['tok_embeddings','layers.0','layers.1'],['norm','lm_head']]"],
    ],
)
def test_a_stage_with_a_layer_or_norm_and_unembedding_has_both_groups(arguments):
    load_config(DENSE, TWO_LAYERS, [*arguments, NO_DECAY])


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
