"""Settings: what a run gets from defaults, files and command line, and how mistakes read."""

import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from recipes.config.help import format_help
from recipes.config.parts import build_data, build_shape
from recipes.config.paths import PATHS
from recipes.config.rules import check_files, check_settings
from recipes.config.schema import load_schema
from recipes.config.settings import Settings, SettingsError, resolve_settings, save_settings
from recipes.data.config import SourceConfig
from tests.waiting import DEADLINE_S

COMPILE = ["--compile.enable"]
BASE = """
[model]
flavor = "debug"
[nitp]
weight = 0.5
target_layer = 2
[[data.sources]]
path = "embedded://python"
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Tests run in an empty folder, so that messages name files as a user would."""
    monkeypatch.chdir(tmp_path)
    write("base.toml", BASE)
    return tmp_path


def write(name: str, text: str) -> None:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text(text, encoding="utf-8")


def resolve(*overrides: str) -> Settings:
    return resolve_settings("base.toml", overrides)


def check(*overrides: str) -> None:
    settings = resolve(*overrides)
    check_settings(settings)
    check_files(settings)


def message(text: str, *overrides: str) -> str:
    """The error of a file `x.toml` that has BASE and `text`."""
    write("x.toml", 'job.extends = "base.toml"\n' + text)
    with pytest.raises(SettingsError) as error:
        settings = resolve_settings("x.toml", overrides)
        check_settings(settings)
        check_files(settings)
    assert "\n" not in str(error.value)
    return str(error.value)


# Where values come from


def test_the_command_line_wins_over_the_file_and_the_file_over_defaults() -> None:
    settings = resolve("--nitp.weight", "0.7")
    assert settings.values["nitp"]["weight"] == 0.7
    assert settings.values["nitp"]["target_layer"] == 2
    assert settings.values["nitp"]["loss"] == "cosine"
    assert settings.origin["nitp.weight"] == "command line"
    assert settings.origin["nitp.target_layer"] == "base.toml"
    assert "nitp.loss" not in settings.origin


def test_torchtitans_defaults_hold_except_the_projects_own() -> None:
    values = resolve().values
    assert values["training"]["steps"] == 10000
    assert values["checkpoint"]["last_save_model_only"] is False
    assert values["metrics"]["enable_tensorboard"] is True
    assert values["debug"]["seed"] == 0
    assert values["optimizer"] == {
        "name": "AdamW", "lr": 8e-4, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1,
        "decay_norms_and_embeddings": True, "implementation": "fused",
    }  # fmt: skip
    assert values["training"]["on_nonfinite"] == "stop"
    assert values["checkpoint"]["allow_projector_change"] is False
    assert values["checkpoint"]["allow_pickle"] is False
    data = {
        "seed": 0, "shuffle": True, "shuffle_buffer": 256, "num_streams": 64, "num_epochs": -1,
        "validation_fraction": 0.0, "bos": "auto", "long_documents": "continue",
        "on_error": "raise", "num_workers": 0,
    }  # fmt: skip
    assert {key: values["data"][key] for key in data} == data
    assert values["geometry"] == {"enable": True, "freq": None, "layers": []}
    assert values["float8"]["projector"] is False
    assert (values["export"]["dtype"], values["export"]["verify"]) == ("bfloat16", "logits")


def test_extends_is_relative_to_its_file_and_merges_tables_key_by_key() -> None:
    write("deep/a.toml", '[job]\nextends = "../base.toml"\n[nitp]\nweight = 0.9\n')
    write("top.toml", '[job]\nextends = "deep/a.toml"\n[nitp]\nshift = 0\n')
    values = resolve_settings("top.toml", []).values
    assert values["nitp"]["target_layer"] == 2
    assert values["nitp"]["weight"] == 0.9
    assert values["nitp"]["shift"] == 0
    assert "extends" not in values["job"]


def test_of_several_bases_the_later_wins() -> None:
    write("b.toml", "[nitp]\nweight = 0.1\n")
    write("top.toml", '[job]\nextends = ["base.toml", "b.toml"]\n')
    assert resolve_settings("top.toml", []).values["nitp"]["weight"] == 0.1


def test_arrays_of_tables_replace() -> None:
    write("top.toml", 'job.extends = "base.toml"\n[[data.sources]]\npath = "x.txt"\n')
    sources = resolve_settings("top.toml", []).values["data"]["sources"]
    assert sources == [asdict(SourceConfig(path="x.txt"))]


def test_the_config_file_can_be_named_among_the_overrides() -> None:
    settings = resolve_settings(None, ["--job.config_file", "base.toml", "--nitp.shift=0"])
    assert settings.values["nitp"]["weight"] == 0.5
    assert "config_file" not in settings.values["job"]


# Command line


@pytest.mark.parametrize(
    ("arguments", "key", "value"),
    [
        (["--training.steps", "7"], "training.steps", 7),
        (["--training.steps=7"], "training.steps", 7),
        (["--training.global_batch_size", "-1"], "training.global_batch_size", -1),
        (["--optimizer.lr", "1e-3"], "optimizer.lr", 1e-3),
        (["--nitp.weight", "1"], "nitp.weight", 1.0),
        (["--training.max_norm", "1e-1"], "training.max_norm", 0.1),
        (["--nitp.shift", "0"], "nitp.shift", 0),
        (["--job.dry_run"], "job.dry_run", True),
        (["--nitp.enable", "false"], "nitp.enable", False),
        (["--job.dry_run", "--training.steps", "7"], "job.dry_run", True),
        (["--optimizer.betas", "0.9,0.99"], "optimizer.betas", [0.9, 0.99]),
        ([*COMPILE, "--compile.components", '["model"]'], "compile.components", ["model"]),
        ([*COMPILE, "--compile.components", "model, loss"], "compile.components",
         ["model", "loss"]),
        ([*COMPILE, "--compile.components="], "compile.components", []),
        (["--job.description", "a=b"], "job.description", "a=b"),
        (["--job.description", "[x]"], "job.description", "[x]"),
        (["--override.imports", '["a.b", ["c.d", {"k": 1}]]'], "override.imports",
         ["a.b", ["c.d", {"k": 1}]]),
        (["--data.sources", '[{path = "x"}]'], "data.sources", [asdict(SourceConfig(path="x"))]),
        (["--data.sources", '[{"path": "x"}]'], "data.sources", [asdict(SourceConfig(path="x"))]),
        (["--debug.seed", "none"], "debug.seed", None),
        (["--parallelism.context_parallel_degree=2",
          "--parallelism.context_parallel_load_balancer", "none"],
         "parallelism.context_parallel_load_balancer", None),
        (["--nitp.projector", "none"], "nitp.projector", "none"),
        (["--training.steps", "7", "--training.steps", "8"], "training.steps", 8),
    ],
)  # fmt: skip
def test_command_line_text_becomes_the_options_type(
    arguments: list[str], key: str, value: Any
) -> None:
    table, name = key.split(".")
    result = resolve(*arguments).values[table][name]
    assert result == value
    assert type(result) is type(value)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--training.steps"], "command line: --training.steps needs a value."),
        (["--training.steps", "--job.dry_run"], "command line: --training.steps needs a value."),
        (["--training.step", "5"],
         "command line: training.step is not an option. Did you mean training.steps?"),
        (["--steps", "5"],
         "command line: --steps is not --table.key. Did you mean "
         "--validation.steps or --training.steps?"),
        (["base.toml"],
         "command line: base.toml is not --table.key. Did you mean --job.config_file base.toml?"),
        (["--training.steps", "1e3"], "command line: training.steps (\"1e3\") must be an integer."),
        (["--job.dry_run", "yes"], "command line: yes is not --table.key."),
        (["--job.dry_run=yes"], 'command line: job.dry_run ("yes") must be true or false.'),
        (["--job.extends", "x"],
         "command line: job.extends belongs in a file; here use --job.config_file."),
        (["--optimizer.betas", "0.9"],
         "command line: optimizer.betas ([0.9]) must be a list of 2 (a number, a number)."),
        (["--data.sources", "x"],
         'command line: data.sources (["x"]) must be a list (each a table).'),
    ],
)  # fmt: skip
def test_a_mistake_on_the_command_line_is_one_line(arguments: list[str], expected: str) -> None:
    with pytest.raises(SettingsError) as error:
        resolve(*arguments)
    assert str(error.value) == expected


# Mistakes in files


def test_a_misspelt_key_names_file_table_key_and_nearest_name() -> None:
    assert message("[nitp]\ntargt_layer = 3") == (
        "x.toml: nitp.targt_layer is not an option. Did you mean nitp.target_layer?"
    )


def test_a_key_in_the_wrong_table_names_the_right_table() -> None:
    assert message("[training]\nlr = 1e-3") == (
        "x.toml: training.lr is not an option. Did you mean optimizer.lr?"
    )


def test_a_key_that_resembles_nothing_points_to_the_help() -> None:
    assert message("[nitp]\nzzzzzz = 3") == (
        "x.toml: nitp.zzzzzz is not an option. See --help nitp."
    )


def test_a_misspelt_table_names_the_nearest_table() -> None:
    assert message("[trainig]\nsteps = 3") == (
        "x.toml: trainig is not a table. Did you mean training?"
    )


def test_a_key_outside_any_table_names_its_table() -> None:
    assert message("lr = 3") == "x.toml: lr is not a table. Did you mean optimizer.lr?"
    assert message("nitp = 3") == "x.toml: nitp (3) must be a table, [nitp]."


def test_a_misspelt_key_of_a_source_is_named() -> None:
    assert message('[[data.sources]]\npth = "x"') == (
        "x.toml: data.sources.pth is not an option. Did you mean data.sources.path?"
    )


def test_a_source_without_a_path_is_refused() -> None:
    assert message('[[data.sources]]\ntext = "x"') == (
        "x.toml: data.sources.path is not set in every [[data.sources]]."
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[training]\nsteps = "many"', 'training.steps ("many") must be an integer.'),
        ("[training]\nsteps = true", "training.steps (true) must be an integer."),
        ("[training]\nsteps = 1.0", "training.steps (1.0) must be an integer."),
        ("[nitp]\nenable = 1", "nitp.enable (1) must be true or false."),
        ("[nitp]\nshift = true", "nitp.shift (true) must be one of 0, 1."),
        ('[optimizer]\nlr = "1e-3"', 'optimizer.lr ("1e-3") must be a number.'),
        ("[debug]\nseed = 0.5", 'debug.seed (0.5) must be an integer or "none".'),
        ("[compile]\ncomponents = [1]",
         "compile.components ([1]) must be a list (each a string)."),
        ('[optimizer]\nname = "SGD"', 'optimizer.name ("SGD") must be one of "AdamW", "Adam".'),
    ],
)  # fmt: skip
def test_a_value_of_the_wrong_type_names_file_key_value_and_type(text: str, expected: str) -> None:
    assert message(text) == f"x.toml: {expected}"


def test_an_integer_in_a_file_becomes_a_float_where_a_float_is_wanted() -> None:
    write("x.toml", 'job.extends = "base.toml"\n[nitp]\nweight = 1\n')
    assert type(resolve_settings("x.toml", []).values["nitp"]["weight"]) is float


def test_a_mistake_in_a_base_file_names_the_base_file() -> None:
    write("b.toml", "[nitp]\nweigth = 1\n")
    write("top.toml", '[job]\nextends = "b.toml"\n')
    with pytest.raises(SettingsError, match=r"^b\.toml: nitp\.weigth is not an option"):
        resolve_settings("top.toml", [])


def test_a_missing_file_names_the_nearest_file_of_its_folder() -> None:
    write("train_configs/debug.toml", BASE)
    with pytest.raises(SettingsError) as error:
        resolve_settings("train_configs/debg.toml", [])
    assert str(error.value) == (
        "train_configs/debg.toml does not exist. Did you mean train_configs/debug.toml?"
    )


def test_a_missing_base_names_the_file_that_wants_it() -> None:
    write("top.toml", '[job]\nextends = "bas.toml"\n')
    with pytest.raises(SettingsError) as error:
        resolve_settings("top.toml", [])
    assert str(error.value) == (
        "top.toml: job.extends: bas.toml does not exist. Did you mean base.toml?"
    )


def test_a_folder_in_place_of_a_file_is_one_line() -> None:
    with pytest.raises(SettingsError, match=r"^\. cannot be read: Is a directory\.$"):
        resolve_settings(".", [])
    write("run/config.toml", BASE)
    with pytest.raises(SettingsError, match=r"Is a directory\. Did you mean run/config\.toml\?$"):
        resolve_settings("run", [])


def test_files_that_extend_each_other_are_refused() -> None:
    write("a.toml", '[job]\nextends = "b.toml"\n')
    write("b.toml", '[job]\nextends = "a.toml"\n')
    with pytest.raises(SettingsError) as error:
        resolve_settings("a.toml", [])
    assert str(error.value) == "b.toml: job.extends is a cycle: a.toml -> b.toml -> a.toml."


def test_a_syntax_error_names_file_and_line() -> None:
    write("bad.toml", "[nitp]\nweight = = 1\n")
    with pytest.raises(SettingsError, match=r"^bad\.toml is not valid TOML: .*line 2, column 10"):
        resolve_settings("bad.toml", [])


def test_a_config_file_inside_a_file_is_refused() -> None:
    assert message('job.config_file = "y.toml"') == (
        "x.toml: job.config_file belongs on the command line; in a file use job.extends."
    )


def test_a_model_without_a_flavor_is_refused() -> None:
    with pytest.raises(SettingsError) as error:
        resolve_settings(None, [])
    assert str(error.value) == "command line: model.flavor is not set. See --help model."


# Activation checkpointing: one table, several classes


def test_only_the_options_of_the_chosen_mode_are_resolved() -> None:
    assert resolve().values["activation_checkpoint"] == {"mode": "none"}
    values = resolve("--activation_checkpoint.mode", "memory_budget").values
    assert values["activation_checkpoint"]["memory_budget"] == 0.5
    assert "force_recompute_mm_shapes_by_fqns" not in values["activation_checkpoint"]


def test_an_option_that_the_mode_does_not_have_names_the_mode() -> None:
    assert message('[activation_checkpoint]\nmode = "full"\nmemory_budget = 0.3\n') == (
        "x.toml: activation_checkpoint.memory_budget is not an option of "
        'activation_checkpoint.mode = "full", which has debug, determinism_check, mode, '
        "preserve_rng_state."
    )


def test_a_new_mode_on_the_command_line_drops_the_options_of_the_files_mode() -> None:
    table = '[activation_checkpoint]\nmode = "memory_budget"\nmemory_budget = 0.3\ndebug = true\n'
    write("x.toml", 'job.extends = "base.toml"\n' + table)
    settings = resolve_settings("x.toml", ["--activation_checkpoint.mode", "full"])
    assert "memory_budget" not in settings.values["activation_checkpoint"]
    assert settings.values["activation_checkpoint"]["debug"] is True


# Cross checks


def test_an_unknown_flavor_names_the_nearest() -> None:
    assert message('model.flavor = "debig"') == (
        'x.toml: model.flavor ("debig") does not exist. Did you mean debug?'
    )


def test_an_unknown_model_names_the_nearest() -> None:
    assert message('model.name = "lama3"') == (
        'x.toml: model.name ("lama3") does not exist. Did you mean llama3?'
    )


def test_a_torchtitan_model_has_its_own_flavors_and_no_overrides() -> None:
    check("--model.name", "llama3", "--model.flavor", "debugmodel")
    assert message('model.name = "llama3"\nmodel.flavor = "debugmdel"') == (
        'x.toml: model.flavor ("debugmdel") does not exist. Did you mean debugmodel?'
    )
    assert message('model.name = "llama3"\nmodel.flavor = "debugmodel"\nmodel.dim = 64') == (
        'x.toml: model.dim is an override of model.name = "nitp" only. '
        "llama3 has the shape of its flavor."
    )


def test_a_target_layer_beyond_the_depth_names_where_it_was_set() -> None:
    assert message("[nitp]\ntarget_layer = 9") == (
        "x.toml: nitp.target_layer (9) must be at most the number of layers (8). Set 0..8."
    )
    write("x.toml", 'job.extends = "base.toml"\n[nitp]\ntarget_layer = 9')
    check_settings(resolve_settings("x.toml", ["--nitp.enable", "false"]))
    check("--nitp.target_layer", "9", "--model.num_layers", "9")


def test_a_start_after_the_last_step_names_where_it_was_set() -> None:
    assert message("[nitp]\nstart_step = 11\n[training]\nsteps = 10") == (
        "x.toml: nitp.start_step (11) must be at most training.steps (10): NITP would never train. "
        "Lower it, or set nitp.enable = false."
    )
    check("--nitp.start_step", "11", "--training.steps", "11")
    write("x.toml", 'job.extends = "base.toml"\n[nitp]\nstart_step = 11')
    check_settings(resolve_settings("x.toml", ["--training.steps=10", "--nitp.enable=false"]))


def test_a_value_out_of_range_names_where_it_was_set() -> None:
    assert message("", "--nitp.weight", "-1").startswith("command line: nitp.weight (-1.0) must be")
    assert message("", "--model.num_heads", "5").startswith("model.num_kv_heads (2) must divide")


def test_steps_that_begin_anew_in_the_middle_of_a_schedule_are_refused() -> None:
    """They would go on beyond its end, where the learning rate is negative."""
    given = ["--checkpoint.initial_load_path=/x", "--checkpoint.allow_pickle"]
    given += ["--checkpoint.enable", "--checkpoint.initial_load_model_only=false"]
    excluded = "--checkpoint.exclude_from_loading="
    assert message("", *given, f"{excluded}train_state") == (
        'command line: checkpoint.exclude_from_loading (["train_state"]) would count the steps '
        'from 0 in the middle of the learning rate\'s schedule. Add "lr_scheduler", which begins '
        "that too."
    )
    check_settings(resolve(*given, f"{excluded}train_state,lr_scheduler"))


def test_builders_give_the_typed_configs() -> None:
    settings = resolve("--model.dim", "384", "--data.seed", "3")
    assert build_shape(settings).dim == 384
    assert build_shape(settings).num_layers == 8
    assert build_data(settings).seed == 3
    assert build_data(settings).sources[0].path == "embedded://python"


# Saving


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["--debug.seed", "none", "--model.dim", "96", "--optimizer.betas", "0.8,0.9"],
        ["--activation_checkpoint.mode", "selective", "--training.max_norm", "inf"],
        ["--override.imports", '["a.b", ["c.d", {"k": 1}]]', "--job.description", 'a "b" c'],
    ],
)
def test_saved_settings_resolve_alone_to_equal_values(overrides: list[str]) -> None:
    settings = resolve(*overrides)
    save_settings(settings, "run/config.toml")
    assert resolve_settings("run/config.toml", []).values == settings.values


# Help


def test_help_shows_every_option_within_100_columns() -> None:
    text = format_help(load_schema(), None)
    assert all(len(line) <= 100 for line in text.splitlines() if "https://" not in line)
    for table, options in load_schema().items():
        for key in options:
            assert f"  {table}.{key}: " in text


def test_help_shows_type_default_and_docstring_of_one_option() -> None:
    assert format_help(load_schema(), "nitp.start_step") == (
        "  nitp.start_step: an integer; default 0\n"
        "      First step (counted from 1) that trains with NITP; 0 and 1 both mean from the "
        "beginning. The\n"
        "      projector keeps its initial values until then. At most the number of steps."
    )


def test_help_on_an_unknown_topic_names_the_nearest() -> None:
    with pytest.raises(SettingsError, match=r"Did you mean nitp\.weight\?"):
        format_help(load_schema(), "nitp.weigt")


# The point of all this


def test_resolving_and_checking_imports_no_torch() -> None:
    code = (
        "import sys\n"
        "from recipes.config.settings import resolve_settings\n"
        "from recipes.config.rules import check_files, check_settings\n"
        "settings = resolve_settings('base.toml', [])\n"
        "check_settings(settings)\n"
        "check_files(settings)\n"
        "print([m for m in sys.modules if m.split('.')[0] in ('torch', 'torchtitan')])\n"
    )
    root = Path(__file__).parents[2]
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"


# ------------------------------------------------------------------------------------------ paths

PATH_OPTIONS = {
    "job.dump_folder": "--job.dump_folder={}",
    "tokenizer.path": "--tokenizer.path={}",
    "data.sources.path": '--data.sources=[{{path = "{}"}}]',
    "validation.sets.path": '--validation.sets=[{{name = "a", path = "{}"}}]',
    "checkpoint.initial_load_path": "--checkpoint.initial_load_path={}",
    "parallelism.pipeline_parallel_schedule_csv": "--parallelism.pipeline_parallel_schedule_csv={}",
}


def resolve_path(option: str, path: str) -> object:
    enabled = ["--model.flavor=debug", "--checkpoint.enable", "--validation.enable"]
    enabled.append("--parallelism.pipeline_parallel_degree=2")
    values = resolve_settings(None, [*enabled, PATH_OPTIONS[option].format(path)]).values
    table, key, *inner = option.split(".")
    return values[table][key][0]["path"] if inner else values[table][key]


@pytest.mark.parametrize("option", PATH_OPTIONS)
def test_home_and_environment_variables_are_expanded_in_every_path(monkeypatch, option):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("SCRATCH", "/scratch")
    assert resolve_path(option, "~/run") == "/home/me/run"
    assert resolve_path(option, "$SCRATCH/${SCRATCH}x") == "/scratch//scratchx"
    assert resolve_path(option, "a~/b") == "a~/b"


@pytest.mark.parametrize("option", PATH_OPTIONS)
@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("$NOT_SET_AT_ALL/x", "names the environment variable NOT_SET_AT_ALL, which is not set."),
        ("${NOT_SET}/x", "names the environment variable NOT_SET, which is not set."),
        ("$SET_TO_NOTHING/x", "names the environment variable SET_TO_NOTHING, which is empty."),
        ("~nobody-of-that-name/x", "begins with ~nobody-of-that-name, which is no home directory."),
        ("$(pwd)/x", "has a $ that begins no variable"),
        ("x/${HOME", "has a $ that begins no variable"),
        ("", "is no path"),
        ("a/" + "b" * 256, "has a name of more than 255 bytes"),
    ],
)
def test_a_path_that_cannot_be_expanded_is_refused(monkeypatch, option, path, message):
    if (option, path) == ("parallelism.pipeline_parallel_schedule_csv", ""):
        return  # TorchTitan's default
    monkeypatch.setenv("SET_TO_NOTHING", "")
    with pytest.raises(SettingsError, match=re.escape(f"{option} ") + ".*" + re.escape(message)):
        resolve_path(option, path)


def test_a_folder_in_the_hubs_layout_is_expanded_too(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert resolve_path("data.sources.path", "hf://~/data") == "hf:///home/me/data"
    assert resolve_path("data.sources.path", "hf://$HOME/data") == "hf:///home/me/data"
    with pytest.raises(SettingsError, match="begins with ~nobody-of-that-name"):
        resolve_path("data.sources.path", "hf://~nobody-of-that-name/x")


@pytest.mark.parametrize("character", ["\0", "\n", "\x1b", "\u2028", "\u202e"])
@pytest.mark.parametrize("option", PATH_OPTIONS)
def test_a_path_with_a_character_that_steers_a_shell_or_terminal_is_refused(option, character):
    is_inline = option.count(".") == 2
    with pytest.raises(SettingsError, match=re.escape(option) + " .* has a control character"):
        resolve_path(option, f"a\\u{ord(character):04x}b" if is_inline else f"a{character}b")


def test_every_path_option_is_covered():
    on_the_command_line_or_in_files = {"job.config_file", "job.extends"}
    assert set(PATH_OPTIONS) | on_the_command_line_or_in_files == PATHS


@pytest.mark.parametrize(
    "arguments", [["--job.description=\udce9"], ["--tokenizer.path", "\udce9"]]
)
def test_an_argument_that_could_not_be_saved_is_refused(arguments):
    with pytest.raises(SettingsError, match=r"^command line: .*\\udce9\"\) is not UTF-8"):
        resolve_settings(None, ["--model.flavor=debug", *arguments])
