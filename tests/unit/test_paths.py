"""What a run writes lies in its directory; what it reads is found from anywhere."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from recipes.config.paths import RUN_PATHS
from recipes.config.rules import check_settings
from recipes.config.settings import Settings, SettingsError, resolve_settings
from recipes.data.inputs import INPUTS_FILE
from recipes.run.folder import check_run_folder, save_config

FLAVOR = ["--model.flavor=debug", "--checkpoint.enable"]


def change(settings: Settings, option: str, value: str) -> Settings:
    table, _, key = option.partition(".")
    changed = {**settings.values[table], key: value}
    return replace(settings, values={**settings.values, table: changed})


@pytest.mark.parametrize("option", RUN_PATHS)
@pytest.mark.parametrize(
    ("value", "rule"),
    [
        ("/scratch/shared", "must be inside job.dump_folder"),
        ("../shared", "must be inside job.dump_folder"),
        ("a/../../shared", "must be inside job.dump_folder"),
        ("~/shared", "must be inside job.dump_folder"),
        ("$SCRATCH/shared", "must be inside job.dump_folder"),
        ("", "must be a name below job.dump_folder"),
        (".", "must be a name below job.dump_folder"),
        ("a\0b", "must be a name below job.dump_folder"),
        ("config.toml", "must not be or hold config.toml, which is the run's own"),
        ("run.lock/x", "must not be or hold run.lock, which is the run's own"),
        ("run.lock.removal", "must not be or hold run.lock.removal, which is the run's own"),
        ("run.lock.0a", "must not be or hold run.lock.0a, which is the run's own"),
        ("config.unfinished", "must not be or hold config.unfinished, which is the run's own"),
        ("structured_logs/x", "must not be or hold structured_logs, which is the run's own"),
        (INPUTS_FILE, f"must not be or hold {INPUTS_FILE}, which is the run's own"),
        ("Config.TOML", "must not be or hold config.toml, which is the run's own"),
        ("Run.Lock.Removal/x", "must not be or hold Run.Lock.Removal, which is the run's own"),
    ],
)
def test_what_a_run_writes_is_inside_its_directory_under_a_name_of_its_own(option, value, rule):
    settings = change(resolve_settings(None, FLAVOR), option, value)
    with pytest.raises(SettingsError) as caught:
        check_settings(settings)
    assert str(caught.value).startswith(f"{option} ({value}) {rule}")


@pytest.mark.parametrize("value", ["checkpoint", "checkpoint/exported", "./checkpoint/"])
def test_two_folders_of_a_run_are_apart(value):
    """The export of step 4 would be taken for its checkpoint."""
    settings = change(resolve_settings(None, FLAVOR), "export.folder", value)
    with pytest.raises(SettingsError, match=r"^export.folder .* which is checkpoint.folder's"):
        check_settings(settings)


def test_the_folders_by_default_are_apart():
    arguments = [*FLAVOR, "--debug.save_config_file=config.json", "--checkpoint.folder=..inside/it"]
    check_settings(resolve_settings(None, arguments))


def relative(dump_folder: str = "run") -> Settings:
    sources = '[{path = "corpus/*"}, {path = "hf://./hub"}, {path = "embedded://python"}]'
    return resolve_settings(
        None,
        [
            *FLAVOR, f"--job.dump_folder={dump_folder}", "--tokenizer.path=tok",
            f"--data.sources={sources}", "--checkpoint.initial_load_path=weights",
        ],
    )  # fmt: skip


def test_a_saved_configuration_names_the_same_files_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    save_config(relative())
    monkeypatch.chdir("/")
    values = resolve_settings(str(tmp_path / "run" / "config.toml"), []).values
    assert values["job"]["dump_folder"] == str(tmp_path / "run")
    assert values["tokenizer"]["path"] == str(tmp_path / "tok")
    assert values["checkpoint"]["initial_load_path"] == str(tmp_path / "weights")
    assert [source["path"] for source in values["data"]["sources"]] == [
        str(tmp_path / "corpus" / "*"), "hf://./hub", "embedded://python",
    ]  # fmt: skip


def test_a_run_is_the_same_by_relative_and_by_absolute_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    save_config(relative())
    assert check_run_folder(relative()) == []
    assert check_run_folder(resolve_settings("run/config.toml", [])) == []
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    with pytest.raises(SettingsError, match=r"another configuration: .*tokenizer.path \("):
        check_run_folder(relative("../run"))


@pytest.mark.parametrize("kind", ["file", "link"])
@pytest.mark.parametrize("table", ["checkpoint", "export"])
def test_what_is_in_the_way_of_a_save_is_found_at_the_start(tmp_path, table, kind):
    run = tmp_path / "run"
    run.mkdir()
    arguments = [*FLAVOR, f"--job.dump_folder={run}", "--export.enable"]
    settings = resolve_settings(None, arguments)
    path = run / settings.values[table]["folder"]
    path.touch() if kind == "file" else path.symlink_to("gone")
    with pytest.raises(SettingsError, match=rf"^{table}.folder \({path}\) is no folder"):
        check_run_folder(settings)
    os.unlink(path)
    assert check_run_folder(settings) == []
    assert Path(run).is_dir()


@pytest.mark.parametrize("option", ["checkpoint.folder", "export.folder", "metrics.save_tb_folder"])
def test_a_link_out_of_the_run_directory_is_refused(tmp_path, option):
    """Two runs with a directory each would share, and delete from, one that neither owns."""
    run = tmp_path / "run"
    (run / "inner").mkdir(parents=True)
    settings = resolve_settings(None, [*FLAVOR, f"--job.dump_folder={tmp_path / 'link'}"])
    (tmp_path / "link").symlink_to("run")
    table, key = option.split(".")
    path = run / settings.values[table][key]
    path.symlink_to("inner")
    assert check_run_folder(settings) == []
    path.unlink()
    path.symlink_to(tmp_path)
    with pytest.raises(SettingsError, match=rf"^{option} \(.*leads out of job.dump_folder"):
        check_run_folder(settings)
