"""Runs in directories inside each other share no folder."""

import re
from pathlib import Path

import pytest

from recipes.config.paths import RUN_PATHS
from recipes.config.settings import Settings, SettingsError, resolve_settings
from recipes.run.folder import check_run_folder, list_writes, save_config
from recipes.run.lock import RunLock

FLAVOR = ["--model.flavor=debug", "--checkpoint.enable", "--export.enable"]


def settings(folder: Path, *overrides: str) -> Settings:
    return resolve_settings(None, [*FLAVOR, f"--job.dump_folder={folder}", *overrides])


def save(folder: Path, *overrides: str) -> None:
    """Leave what a run leaves in its directory."""
    folder.mkdir(parents=True, exist_ok=True)
    save_config(settings(folder, *overrides))


def refuse(run: Settings, match: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(match)):
        check_run_folder(run)


@pytest.mark.parametrize("path", ["inner/checkpoint", "inner", "inner/checkpoint/deeper"])
@pytest.mark.parametrize("option", ["checkpoint.folder", "export.folder", "metrics.save_tb_folder"])
def test_a_run_does_not_write_in_the_directory_of_a_run_inside_its_own(tmp_path, option, path):
    save(tmp_path / "outer" / "inner")
    assert check_run_folder(settings(tmp_path / "outer")) == [], "it may lie there"
    refuse(
        settings(tmp_path / "outer", f"--{option}={path}"),
        f"would be written to at {path}, in the directory of another run, "
        f"{tmp_path / 'outer' / 'inner'}.",
    )


@pytest.mark.parametrize("path", ["inner/checkpoint", "inner", "inner/checkpoint/deeper"])
def test_a_run_does_not_lie_where_the_run_around_it_writes(tmp_path, path):
    save(tmp_path / "outer", f"--checkpoint.folder={path}")
    refuse(
        settings(tmp_path / "outer" / "inner"),
        f"shares {tmp_path / 'outer' / path} with the run in {tmp_path / 'outer'}, which writes",
    )
    refuse(settings(tmp_path / "outer" / path / "step-5" / "run"), "shares ")
    assert check_run_folder(settings(tmp_path / "outer" / "other")) == []
    (tmp_path / "link").symlink_to("outer")
    refuse(settings(tmp_path / "link" / "inner"), "shares ")


def test_runs_that_have_not_done_a_step_are_known_by_their_locks(tmp_path):
    outer = settings(tmp_path / "outer", "--checkpoint.folder=inner/checkpoint")
    inner = settings(tmp_path / "outer" / "inner")
    with RunLock(str(tmp_path / "outer"), writes=list_writes(outer)):
        assert check_run_folder(outer) == []
        refuse(inner, "shares ")
    with RunLock(str(tmp_path / "outer" / "inner"), writes=list_writes(inner)):
        assert check_run_folder(inner) == []
        refuse(outer, "would be written to at inner/checkpoint")


@pytest.mark.parametrize(
    "content", ["", "[job", "job = 5", "[checkpoint]\nfolder = 'run'", "[job]\ndump_folder = 5"]
)
def test_a_file_of_the_same_name_that_is_no_runs_configuration_is_no_matter(tmp_path, content):
    (tmp_path / "config.toml").write_text(content)
    assert check_run_folder(settings(tmp_path / "run")) == []


def test_what_a_run_writes_are_the_paths_that_its_options_name(tmp_path):
    writes = list_writes(settings(tmp_path, "--checkpoint.folder=a/b"))
    assert "a/b" in writes and len(writes) in (len(RUN_PATHS), len(RUN_PATHS) - 1)
