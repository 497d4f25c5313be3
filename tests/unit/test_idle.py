"""Options without effect are errors: what makes each option of each table idle."""

import re

import pytest

from recipes.config.idle import RULES
from recipes.config.schema import load_schema
from recipes.config.settings import SettingsError, resolve_settings, save_settings

FLAVOR = ["--model.flavor=debug"]
MOE = ["--model.flavor=debug_moe"]

# Option -> (arguments that make it idle, another value than its default). Options of one table or
# group that share the arguments are together.
OFF = {
    "checkpoint": ([], {
        "folder": "c", "interval": "7", "initial_load_path": "x",
        "initial_load_model_only": "false", "initial_load_in_hf": "true",
        "initial_load_in_hf_quantized": "true",
        "last_save_model_only": "true", "last_save_in_hf": "true", "export_dtype": "bfloat16",
        "keep_latest_k": "3", "load_step": "3", "exclude_from_loading": "optimizer",
        "enable_first_step_checkpoint": "true", "create_seed_checkpoint": "true",
        "load_only": "true", "async_mode": "async", "allow_projector_change": "true",
        "allow_pickle": "true",
    }),
    "validation": ([], {"freq": "3", "steps": "3", "sets": "[{name = 'x', path = 'x'}]"}),
    "compile": ([], {
        "enable_async_tensor_parallel": "true", "components": "loss", "backend": "eager",
    }),
    "float8": ([], {
        "projector": "true", "recipe_name": "rowwise_with_gw_hp", "filter_fqns": "x",
        "emulate": "true",
    }),
    "export": ([], {"folder": "e", "dtype": "float32", "verify": "keys"}),
    "nitp": (["--nitp.enable=false"], {
        "target_layer": "1", "weight": "0.5", "start_step": "3", "loss": "mse", "shift": "0",
        "stop_gradient": "false", "hidden": "pre_norm", "projector": "none",
        "projector_ratio": "2.0",
    }),
    "geometry": (["--geometry.enable=false"], {"freq": "20", "layers": "all"}),
    "model": ([], {
        "num_dense_layers": "1", "num_shared_experts": "1", "top_k": "1", "expert_dim": "8",
        "router_score_func": "softmax", "expert_bias_rate": "0.1",
    }),
    "parallelism": ([], {
        "enable_sequence_parallel": "false", "context_parallel_load_balancer": "none",
        "context_parallel_ptrr_mask_key": "x", "module_fqns_per_model_part": "[['x']]",
        "pipeline_parallel_first_stage_less_layers": "2",
        "pipeline_parallel_last_stage_less_layers": "2", "pipeline_parallel_layers_per_stage": "2",
        "pipeline_parallel_schedule": "Interleaved1F1B", "pipeline_parallel_schedule_csv": "x",
        "pipeline_parallel_microbatch_size": "2",
    }),
    "optimizer": (["--optimizer.weight_decay=0"], {"decay_norms_and_embeddings": "false"}),
    "lr_scheduler": (["--lr_scheduler.decay_ratio=0"], {
        "decay_type": "sqrt", "min_lr_factor": "0.1",
    }),
    "data": (["--data.shuffle=false"], {"shuffle_buffer": "7", "seed": "7"}),
    "metrics": (["--metrics.enable_tensorboard=false"], {
        "save_tb_folder": "x", "save_for_all_ranks": "true",
    }),
    "profiler": ([], {
        "save_traces_folder": "x", "profile_freq": "7", "profiler_repeat": "2",
        "profiler_skip_first": "2", "profiler_skip_first_wait": "2", "profiler_active": "2",
        "profiler_warmup": "2", "memory_snapshot_freq": "2", "save_memory_snapshot_folder": "x",
        "memory_snapshot_max_entries": "2",
    }),
    "comm": (["--comm.trace_buf_size=0"], {
        "save_traces_folder": "x", "save_traces_file_prefix": "x",
    }),
    "debug": ([], {"deterministic_warn_only": "true", "moe_force_load_balance": "true"}),
}  # fmt: skip

# The others, which nothing makes idle. "*": the whole table, and why.
ALWAYS = {
    "job": "*: of every run",
    "model": "name flavor vocab_size dim num_layers num_heads num_kv_heads head_dim ffn_dim "
             "num_experts qk_norm tie_embeddings rope_theta norm_eps init_std max_seq_len",
    "nitp": "enable",
    "geometry": "enable",
    "data": "sources shuffle num_streams num_epochs validation_fraction bos long_documents "
            "on_error num_workers",
    "data.sources": "*: checked with each source: recipes/data/config.py",
    "validation.sets": "*: checked with each set: recipes/data/config.py",
    "validation": "enable",
    "tokenizer": "*: of every run",
    "training": "*: of every run",
    "optimizer": "name lr betas eps weight_decay implementation",
    "lr_scheduler": "warmup_steps total_steps decay_ratio",
    "parallelism": "data_parallel_replicate_degree data_parallel_shard_degree "
                   "fsdp_reshard_after_forward enable_fsdp_symm_mem tensor_parallel_degree "
                   "spmd_backend pipeline_parallel_degree context_parallel_degree "
                   "expert_parallel_degree",
    "activation_checkpoint": "*: options of another mode are refused by the table itself",
    "compile": "enable",
    "float8": "enable",
    "loss": "*: of every run",
    "checkpoint": "enable",
    "metrics": "log_freq enable_tensorboard disable_color_printing enable_wandb",
    "export": "enable",
    "profiler": "enable_profiling enable_memory_snapshot",
    "comm": "init_timeout_seconds train_timeout_seconds trace_buf_size mode",
    "debug": "seed spmd_typechecking deterministic detect_anomaly batch_invariant print_config "
             "save_config_file enable_structured_logging",
    "override": "*: of every run",
}  # fmt: skip

# What is idle for a reason within its table, or for another's: (arguments, the idle one).
MORE = [
    (["--nitp.weight=0"], "--nitp.target_layer=1"),
    (["--nitp.weight=0", "--float8.enable"], "--float8.projector=true"),
    (["--nitp.enable=false", "--float8.enable"], "--float8.projector=true"),
    (["--nitp.projector=none"], "--nitp.projector_ratio=2.0"),
    (["--nitp.loss=token_cosine"], "--nitp.projector_ratio=2.0"),
    (["--nitp.loss=token_cosine"], "--nitp.target_layer=1"),
    (["--nitp.loss=token_cosine"], "--nitp.shift=0"),
    (["--nitp.loss=token_cosine"], "--nitp.stop_gradient=false"),
    (["--nitp.loss=token_cosine"], "--nitp.projector=none"),
    (["--checkpoint.enable", "--checkpoint.load_only"], "--checkpoint.interval=7"),
    (["--checkpoint.enable", "--checkpoint.load_only"], "--checkpoint.async_mode=async"),
    (["--checkpoint.enable", "--checkpoint.load_only"],
     "--checkpoint.enable_first_step_checkpoint=true"),
    (["--checkpoint.enable"], "--checkpoint.export_dtype=bfloat16"),
    (["--checkpoint.enable"], "--checkpoint.allow_pickle=true"),
    (["--checkpoint.enable"], "--checkpoint.initial_load_model_only=false"),
    (["--checkpoint.enable", "--checkpoint.initial_load_path=x", "--checkpoint.initial_load_in_hf"],
     "--checkpoint.allow_pickle=true"),
    (["--profiler.enable_memory_snapshot", "--profiler.memory_snapshot_freq=3"],
     "--profiler.profile_freq=5"),
    (["--compile.enable"], "--compile.enable_async_tensor_parallel=true"),
    (["--validation.enable", "--validation.sets=[{name = 'x', path = 'x'}]"],
     "--validation.steps=3"),
]  # fmt: skip


def test_every_option_has_a_line_here():
    listed = {f"{table}.{key}" for table, (_, options) in OFF.items() for key in options}
    schema = load_schema()
    for table, options in schema.items():
        if ALWAYS.get(table, "").startswith("*"):
            continue
        named = [key for key in options if f"{table}.{key}" in listed]
        assert {*named, *ALWAYS.get(table, "").split()} == set(options), table


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        *((a, f"--{t}.{k}={v}") for t, (a, options) in OFF.items() for k, v in options.items()),
        *MORE,
    ],
)
def test_an_option_without_effect_is_refused_by_name(arguments, option):
    name = option.removeprefix("--").partition("=")[0]
    with pytest.raises(SettingsError, match=rf"^command line: {re.escape(name)} \(.*no effect"):
        resolve_settings(None, [*FLAVOR, *arguments, option])


@pytest.mark.parametrize("option", ["--model.top_k=1", "--debug.moe_force_load_balance=true"])
def test_experts_options_have_an_effect_where_there_are_experts(option):
    resolve_settings(None, [*MOE, option])
    resolve_settings(None, [*FLAVOR, "--model.num_experts=4", option])


def test_what_two_reports_share_has_an_effect_with_either():
    resolve_settings(None, [*FLAVOR, "--profiler.enable_profiling", "--profiler.profile_freq=5"])
    snapshot = [*FLAVOR, "--profiler.enable_memory_snapshot", "--profiler.profile_freq=5"]
    resolve_settings(None, snapshot)


def test_what_equals_its_default_is_never_in_vain():
    """The flavour has no shared expert either."""
    resolve_settings(None, [*FLAVOR, "--model.num_shared_experts=0", "--validation.freq=10"])


def test_the_message_names_value_reason_and_remedy():
    arguments = [*FLAVOR, "--checkpoint.initial_load_path=weights"]
    with pytest.raises(SettingsError) as caught:
        resolve_settings(None, arguments)
    assert str(caught.value) == (
        'command line: checkpoint.initial_load_path ("weights") has no effect while '
        "checkpoint.enable is false. Set it to true, or leave checkpoint.initial_load_path out."
    )


@pytest.mark.parametrize("more", [["--checkpoint.enable=false"], []])
def test_weights_to_start_from_are_never_turned_off_in_silence(tmp_path, more):
    config = tmp_path / "run.toml"
    config.write_text(
        '[model]\nflavor = "debug"\n[checkpoint]\nenable = true\ninitial_load_path = "weights"\n'
    )
    if not more:
        config.write_text(config.read_text().replace("true", "false"))
    with pytest.raises(SettingsError, match=r"initial_load_path \(.*no effect"):
        resolve_settings(str(config), more)


def test_what_is_turned_off_later_takes_its_default_and_stays_off_when_saved(tmp_path):
    base, run, saved = (tmp_path / name for name in ("base.toml", "run.toml", "saved.toml"))
    base.write_text('[model]\nflavor = "debug"\n[validation]\nenable = true\nfreq = 3\n')
    run.write_text('[job]\nextends = "base.toml"\n[validation]\nenable = false\n')
    settings = resolve_settings(str(run), ["--nitp.target_layer=2"], ["--nitp.enable=false"])
    assert settings.values["validation"]["freq"] == 10  # TorchTitan's
    assert settings.values["nitp"]["target_layer"] == 5
    save_settings(settings, saved)
    assert resolve_settings(str(saved), []).values == settings.values


def test_in_one_file_order_does_not_matter(tmp_path):
    config = tmp_path / "run.toml"
    config.write_text('[model]\nflavor = "debug"\n[validation]\nfreq = 3\nenable = false\n')
    with pytest.raises(SettingsError, match=r"run.toml: validation.freq \(3\) has no effect"):
        resolve_settings(str(config), [])


@pytest.mark.parametrize("is_reversed", [False, True])
@pytest.mark.parametrize(
    ("switch", "option"),
    [
        ("geometry.enable=false", "geometry.layers=1"),
        ("nitp.weight=0", "float8.projector=true"),
        ("parallelism.context_parallel_load_balancer=headtail",
         "parallelism.context_parallel_ptrr_mask_key=x"),
    ],
)  # fmt: skip
def test_on_one_command_line_order_does_not_matter(switch, option, is_reversed):
    arguments = [f"--{option}", f"--{switch}"]
    more = ["--float8.enable", "--parallelism.context_parallel_degree=2", "--model.flavor=debug"]
    name = option.partition("=")[0]
    with pytest.raises(SettingsError, match=rf"^command line: {name} \(.* has no effect"):
        resolve_settings(None, [*more, *(arguments[::-1] if is_reversed else arguments)])
    resolve_settings(None, [*more, f"--{option}"], [f"--{switch}"])  # a program's, one by one


def test_of_files_in_a_list_the_later_turns_off_what_the_earlier_sets(tmp_path):
    """However many files the earlier one extends itself."""
    for name, text in (
        ("deep", '[model]\nflavor = "debug"\n'),
        ("first", '[job]\nextends = "deep.toml"\n[geometry]\nlayers = [1]\n'),
        ("second", "[geometry]\nenable = false\n"),
        ("run", '[job]\nextends = ["first.toml", "second.toml"]\n'),
        ("reversed", '[job]\nextends = ["second.toml", "first.toml"]\n'),
    ):
        (tmp_path / f"{name}.toml").write_text(text)
    assert resolve_settings(str(tmp_path / "run.toml"), []).values["geometry"]["layers"] == []
    with pytest.raises(SettingsError, match=r"first.toml: geometry.layers \(\[1\]\) has no eff"):
        resolve_settings(str(tmp_path / "reversed.toml"), [])


def test_every_rule_names_options_that_exist():
    names = [f"{table}.{key}" for table, options in load_schema().items() for key in options]
    for rule in RULES:
        assert set(rule.switches) <= set(names)
        for pattern in rule.options:
            assert any(re.fullmatch(pattern.replace("*", ".*"), name) for name in names), pattern
