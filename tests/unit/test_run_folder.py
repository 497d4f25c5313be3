"""A run directory belongs to one configuration."""

import os
import shutil
from fnmatch import fnmatchcase

import pytest

from recipes.config.schema import load_schema
from recipes.config.settings import SettingsError, resolve_settings
from recipes.run.folder import (
    MAY_CHANGE,
    check_is_not_moved,
    check_run_folder,
    may_change,
    save_config,
)

DEBUG = "train_configs/debug.toml"


def settings(folder, *overrides: str):
    return resolve_settings(DEBUG, [f"--job.dump_folder={folder}", *overrides])


@pytest.fixture
def run(tmp_path):
    """The directory of a run of train_configs/debug.toml."""
    save_config(settings(tmp_path / "run"))
    return tmp_path / "run"


def test_a_new_directory_and_the_same_configuration_are_accepted(tmp_path, run):
    assert check_run_folder(settings(tmp_path / "new")) == []
    assert check_run_folder(settings(run)) == []
    assert os.listdir(run) == ["config.toml"]
    assert not (tmp_path / "new").exists(), "checking writes nothing"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--optimizer.lr=0.5", "optimizer.lr (0.001 -> 0.5)"),
        ("--nitp.weight=0.5", "nitp.weight (1.0 -> 0.5)"),
        ("--nitp.enable=false", "nitp.enable (true -> false)"),
        ("--model.num_layers=4", "model.num_layers (not set -> 4)"),
        ("--data.seed=1", "data.seed (0 -> 1)"),
        ("--debug.seed=1", "debug.seed (0 -> 1)"),
        ("--training.global_batch_size=16", "training.global_batch_size (8 -> 16)"),
        ("--data.sources=[{path='other.jsonl'}]", 'data.sources ([{"path": "embedded://python"'),
        ("--checkpoint.enable=false", "checkpoint.enable (true -> false)"),
    ],
)
def test_another_configuration_is_refused_by_the_names_of_its_keys(run, override, message):
    with pytest.raises(SettingsError, match="holds a run with another configuration") as raised:
        check_run_folder(settings(run, override, "--metrics.log_freq=1"))
    assert message in str(raised.value)
    assert "metrics.log_freq" not in str(raised.value)


def test_all_differing_keys_are_named(run):
    with pytest.raises(SettingsError) as raised:
        check_run_folder(settings(run, "--optimizer.lr=0.5", "--data.seed=1", "--nitp.shift=0"))
    assert all(key in str(raised.value) for key in ("optimizer.lr", "data.seed", "nitp.shift"))


def test_harmless_changes_are_accepted_and_reported(run):
    changes = check_run_folder(settings(run, "--metrics.log_freq=7", "--job.description=x"))
    assert changes == [
        'job.description ("Debug decoder with NITP" -> "x")',
        "metrics.log_freq (5 -> 7)",
    ]
    # The schedule follows the number of steps unless it has its own.
    (change,) = check_run_folder(settings(run, "--training.steps=7"))
    assert change == "training.steps (200 -> 7), and with it the learning rate's schedule"


def test_a_saved_configuration_names_its_directory_from_anywhere(tmp_path, monkeypatch):
    given = settings("outputs/x")
    monkeypatch.chdir(tmp_path)
    save_config(given)
    monkeypatch.chdir("/")
    saved = resolve_settings(str(tmp_path / "outputs/x/config.toml"), [])
    assert saved.values["job"]["dump_folder"] == str(tmp_path / "outputs/x")


def test_a_directory_that_moved_is_the_same_run(run):
    moved = run.rename(run.with_name("moved"))
    (change,) = check_run_folder(settings(moved))
    assert change.startswith("job.dump_folder (")


@pytest.fixture(params=["checkpoint/step-2/.metadata", "tb/20260101-000000/events.out.1"])
def moved(run, request):
    """A run that has saved, or has curves only, and that was moved."""
    file = run / request.param
    file.parent.mkdir(parents=True)
    file.write_text("")
    return run.rename(run.with_name("it is moved"))


def test_the_configuration_of_a_run_that_was_moved_does_not_train_in_the_old_place(moved, run):
    config = moved / "config.toml"
    with pytest.raises(SettingsError) as raised:
        check_is_not_moved(resolve_settings(str(config), []))
    assert str(raised.value) == (
        f"{config}: job.dump_folder ({run}) is not where this file lies, with a run beside it: "
        f"that was moved or copied. Go on with it by --job.dump_folder='{moved}', or train at the "
        f"other place by --job.dump_folder={run}."
    )
    for folder in (moved, run):  # both remedies, and the first is the same run
        given = resolve_settings(str(config), [f"--job.dump_folder={folder}"])
        check_is_not_moved(given)
    (change,) = check_run_folder(resolve_settings(str(config), [f"--job.dump_folder={moved}"]))
    assert change.startswith("job.dump_folder (")


def test_a_moved_run_is_noticed_by_what_extends_it_and_from_its_own_folder(moved, monkeypatch):
    (moved.parent / "mine.toml").write_text('[job]\nextends = "it is moved/config.toml"\n')
    monkeypatch.chdir(moved)
    for path in ("../mine.toml", "config.toml"):
        with pytest.raises(SettingsError, match="was moved or copied"):
            check_is_not_moved(resolve_settings(path, []))


def test_a_configuration_is_no_moved_run_where_none_lies(moved, tmp_path):
    """By a link to the run, as a copy elsewhere, or beside an empty folder of checkpoints."""
    moved.rename(tmp_path / "run")
    (tmp_path / "link").symlink_to(tmp_path / "run")
    (tmp_path / "plain" / "checkpoint").mkdir(parents=True)
    shutil.copy(tmp_path / "run" / "config.toml", tmp_path / "plain")
    for folder in ("run", "link", "plain"):
        check_is_not_moved(resolve_settings(str(tmp_path / folder / "config.toml"), []))


def test_what_may_change_exists_and_leaves_the_mathematics_alone():
    options = [f"{t}.{key}" for t, keys in load_schema().items() if "." not in t for key in keys]
    for pattern in MAY_CHANGE:
        table = pattern.partition(".")[0]
        is_empty = not load_schema()[table]  # a table that has no options yet
        assert is_empty or any(fnmatchcase(option, pattern) for option in options), pattern
    for table in ("model", "nitp", "optimizer", "tokenizer", "float8", "override", "lr_scheduler"):
        for key in load_schema()[table]:
            assert not may_change(f"{table}.{key}"), key


def test_a_configuration_that_cannot_be_read_is_not_taken_for_none(run):
    (run / "config.toml").write_text("[nitp]\nno_such_key = 1\n")
    with pytest.raises(SettingsError, match="this version cannot read: .*nitp.no_such_key"):
        check_run_folder(settings(run))


def test_a_directory_that_cannot_be_written_to_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(SettingsError, match="is no folder: .*file is a file"):
            check_run_folder(settings(folder))
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(SettingsError, match="dangling is a link to .*nowhere, which"):
        check_run_folder(settings(tmp_path / "dangling"))
    with pytest.raises(SettingsError, match=r"job.dump_folder \(s3://bucket/run\) must be a path"):
        check_run_folder(settings("s3://bucket/run"))


def test_a_read_only_directory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(SettingsError, match="cannot be written to"):
        check_run_folder(settings(tmp_path))


def test_checkpoints_without_a_configuration_are_refused(run):
    (run / "checkpoint" / "step-2").mkdir(parents=True)
    assert check_run_folder(settings(run)) == []
    (run / "config.toml").unlink()
    with pytest.raises(SettingsError, match="has checkpoints but no config.toml"):
        check_run_folder(settings(run))
    assert check_run_folder(settings(run, "--checkpoint.enable=false")) == []
