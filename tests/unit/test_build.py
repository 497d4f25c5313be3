"""Each table of a run's settings reaches TorchTitan's configuration."""

import json
from operator import attrgetter

import pytest
from torchtitan.distributed.activation_checkpoint import FullAC, SelectiveAC

from recipes.config import load_config

# What is set -> where it must arrive.
OPTIONS = {
    "--nitp.weight=0.35": ("nitp.weight", 0.35),
    "--geometry.freq=6": ("geometry.freq", 6),
    "--loss.num_chunks=2": ("loss.num_chunks", 2),
    "--training.steps=77": ("training.steps", 77),
    "--training.max_norm=0.75": ("training.max_norm", 0.75),
    "--data.seed=5": ("dataloader.data.seed", 5),
    "--validation.freq=11": ("validator.freq", 11),
    "--validation.steps=3": ("validator.steps", 3),
    "--lr_scheduler.warmup_steps=7": ("lr_scheduler.warmup_steps", 7),
    "--lr_scheduler.decay_ratio=0.25": ("lr_scheduler.decay_ratio", 0.25),
    "--lr_scheduler.decay_type=cosine": ("lr_scheduler.decay_type", "cosine"),
    "--optimizer.implementation=foreach": ("optimizer.implementation", "foreach"),
    "--parallelism.data_parallel_replicate_degree=2": (
        "parallelism.data_parallel_replicate_degree", 2,
    ),
    "--checkpoint.interval=9": ("checkpoint.interval", 9),
    "--checkpoint.allow_projector_change": ("checkpoint.allow_projector_change", True),
    "--compile.enable": ("compile.enable", True),
    "--compile.components=[\"loss\"]": ("compile.components", ["loss"]),
    "--metrics.log_freq=3": ("metrics.log_freq", 3),
    "--profiler.enable_profiling": ("profiler.enable_profiling", True),
    "--profiler.profile_freq=17": ("profiler.profile_freq", 17),
    "--comm.init_timeout_seconds=78": ("comm.init_timeout_seconds", 78),
    "--debug.seed=6": ("debug.seed", 6),
    "--job.dump_folder=outputs/elsewhere": ("dump_folder", "outputs/elsewhere"),
}  # fmt: skip
OPTIMIZER = {
    "--optimizer.lr=2e-3": ("lr", 2e-3),
    "--optimizer.betas=[0.8, 0.9]": ("betas", (0.8, 0.9)),
    "--optimizer.eps=1e-5": ("eps", 1e-5),
    "--optimizer.weight_decay=0.3": ("weight_decay", 0.3),
}


PP = ["--parallelism.pipeline_parallel_degree=2", "--training.disable_cuda_graphs"]
PARTS = "--parallelism.module_fqns_per_model_part="
RECOMPUTE = "--activation_checkpoint.force_recompute_mm_shapes_by_fqns="
LAYERS = [f"layers.{i}" for i in range(8)]
FIRST, LAST = ["tok_embeddings", *LAYERS[:4]], [*LAYERS[4:], "norm", "lm_head"]


def build(*overrides: str):
    return load_config("train_configs/debug.toml", overrides)


def test_every_table_arrives():
    usual, config = build(), build(*OPTIONS)
    for option, (field, value) in OPTIONS.items():
        assert attrgetter(field)(usual) != value, f"{option} tests nothing"
        assert attrgetter(field)(config) == value, option


def test_the_optimizers_numbers_arrive():
    (usual,), (group,) = (
        config.optimizer.param_groups
        for config in (build(), build("--optimizer.name=Adam", *OPTIMIZER))
    )
    assert (usual.optimizer_name, group.optimizer_name) == ("AdamW", "Adam")
    for option, (name, value) in OPTIMIZER.items():
        assert usual.optimizer_kwargs[name] != value, f"{option} tests nothing"
    assert group.optimizer_kwargs == dict(OPTIMIZER.values())


def test_activation_checkpointing_is_of_the_chosen_mode():
    assert build().activation_checkpoint is None
    for mode, kind in (("full", FullAC.Config), ("selective", SelectiveAC.Config)):
        assert type(build(f"--activation_checkpoint.mode={mode}").activation_checkpoint) is kind


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--model.max_seq_len=64"], r"^training.seq_len \(256\) must be .*model.max_seq_len.* 64"),
        (["--training.seq_len=65536"], r"^training.seq_len \(65536\) must be at most .* 32768"),
        (["--compile.enable", "--compile.backend=inductr"], "backend.*Did you mean inductor"),
        (["--activation_checkpoint.mode=selective", f"{RECOMPUTE}atention"],
         r'fqns \("atention"\) is part of no linear layer.*Did you mean attention\?'),
        (["--override.imports=nope.thing"], r'override.imports \("nope.thing"\) .*No module named'),
        (["--override.imports=thing"], r'override.imports \("thing"\) must be module.function'),
        (["--override.imports=recipes.platform.overrides.float32_expert"],
         "Did you mean float32_experts"),
        ([*PP, PARTS + json.dumps([[*FIRST, "layer.4"], LAST])], "Did you mean layers.4"),
        ([*PP, PARTS + json.dumps([FIRST, LAST[1:]])], "must have layers.4 in one of its parts"),
        ([*PP, PARTS + json.dumps([[*FIRST, "layers.4"], LAST])], "must have each module once"),
        ([*PP, PARTS + json.dumps([LAST, FIRST])], "in the model's order"),
    ],
)  # fmt: skip
def test_a_name_that_the_model_does_not_have_is_refused(overrides, message):
    with pytest.raises(ValueError, match=message):
        build(*overrides)


def test_names_that_the_model_has_are_taken():
    build(*PP, PARTS + json.dumps([FIRST, LAST]))
    build("--activation_checkpoint.mode=selective", f"{RECOMPUTE}w2,attention")
