"""checkpoint.initial_load_path, by what lies there, before torch."""

from pathlib import Path

import pytest

from recipes.config.initial import check_initial_load
from recipes.config.settings import resolve_settings


def save(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / ".metadata").touch()
    return folder


def check(run: Path, path: Path | str, *, hf: bool = False, must_exist: bool = True) -> None:
    form = "--checkpoint.initial_load_in_hf" if hf else "--checkpoint.allow_pickle"
    given = ["--model.flavor=debug", "--checkpoint.enable", f"--job.dump_folder={run}", form]
    settings = resolve_settings(None, [*given, f"--checkpoint.initial_load_path={path}"])
    check_initial_load(settings.values, must_exist=must_exist)


def refused(tmp_path: Path, path: Path | str, *, hf: bool = False) -> str:
    with pytest.raises(ValueError, match=r"^checkpoint.initial_load_path \(") as caught:
        check(tmp_path / "new", path, hf=hf)
    return str(caught.value).removeprefix(f"checkpoint.initial_load_path ({path}) ")


def test_checkpoints_and_weights_are_taken(tmp_path):
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "model.safetensors").touch()
    check(tmp_path / "new", tmp_path / "hf", hf=True)
    check(tmp_path / "new", save(tmp_path / "any-name"))
    check(tmp_path / "new", "s3://bucket/step-5")


def test_a_run_directory_names_its_latest_checkpoint(tmp_path):
    run = tmp_path / "run"
    for name in ("step-9", "step-10", "step-x"):
        save(run / "checkpoint" / name)
    (run / "checkpoint" / "step-11").mkdir()  # cut off
    (run / "config.toml").touch()
    latest = run / "checkpoint" / "step-10"
    remedy = f"Name one of its checkpoints: {latest}."
    assert refused(tmp_path, run) == f"is a run directory. {remedy}"
    assert refused(tmp_path, run / "checkpoint") == f"is a folder of checkpoints. {remedy}"
    assert refused(tmp_path, run, hf=True) == f"is a run directory. {remedy}"


def test_what_is_not_there_or_something_else_says_so(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "cut").mkdir()
    assert refused(tmp_path, "gone") == "must be a folder, and does not exist. Name another."
    check(tmp_path / "new", "gone", must_exist=False)  # a dry run, maybe on another machine
    assert refused(tmp_path, tmp_path / "file").startswith("must be a folder, and is a file")
    assert "no complete DCP checkpoint: it has no .metadata" in refused(tmp_path, tmp_path / "cut")
    assert "has no config.json and no *.safet" in refused(tmp_path, tmp_path / "cut", hf=True)


def test_the_other_format_names_the_switch(tmp_path):
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "model-00001-of-00002.safetensors").touch()
    assert "Set checkpoint.initial_load_in_hf = true" in refused(tmp_path, tmp_path / "hf")
    assert "is a DCP checkpoint" in refused(tmp_path, save(tmp_path / "dcp"), hf=True)


def test_a_run_that_resumes_needs_them_no_more(tmp_path):
    save(tmp_path / "run" / "checkpoint" / "step-4")
    check(tmp_path / "run", "gone")
