"""The commands that a run prints at its end are ones that do, as they stand, what they say."""

import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from recipes.config.rules import check_settings
from recipes.config.settings import resolve_settings
from recipes.run import closing
from recipes.run.closing import End, describe_end, describe_files, describe_next, saves
from recipes.run.folder import check_is_not_moved, check_run_folder, save_config

FULL_LOAD = ["--checkpoint.initial_load_path=/a", "--checkpoint.initial_load_model_only=false",
             "--checkpoint.allow_pickle"]  # fmt: skip
HF_LOAD = ["--checkpoint.initial_load_path=/a", "--checkpoint.initial_load_in_hf"]
EXCLUDED = "--checkpoint.exclude_from_loading=dataloader"
MODEL_ONLY = "--checkpoint.last_save_model_only"


@pytest.fixture(autouse=True)
def one_process(monkeypatch):
    """As recipes.train sets it without a launcher."""
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)


def make_config(folder: Path, *overrides: str) -> Any:
    """What of a run's configuration the lines depend on; the run has saved its config.toml."""
    settings = resolve_settings(
        "train_configs/debug.toml",
        [f"--job.dump_folder={folder}", "--training.steps=40", *overrides],
    )
    check_settings(settings)
    save_config(settings)
    tables = {name: SimpleNamespace(**table) for name, table in settings.values.items()}
    return SimpleNamespace(
        **tables,
        dump_folder=str(folder),
        dataloader=SimpleNamespace(data=tables["data"]),
    )


def make_end(folder: Path, **changes: Any) -> End:
    given = {"step": 40, "num_steps_run": 40, "is_resumable": True}
    return End(**{"checkpoint": folder / "checkpoint" / "step-40", **given, **changes})


def resolve(line: str) -> dict[str, dict[str, Any]]:
    """What the command of a line would run with, once it has passed all that is checked first."""
    command = shlex.split(line.rpartition(": ")[2])
    assert shutil.which(command[0]) is not None, "no such program"
    settings = resolve_settings(None, command[command.index("recipes.train") + 1 :])
    check_settings(settings)
    check_is_not_moved(settings)
    check_run_folder(settings)
    return settings.values


@pytest.mark.parametrize(
    ("overrides", "steps"),
    [
        ([], 80),
        (["--lr_scheduler.total_steps=100"], 80),
        (["--lr_scheduler.total_steps=60"], 60),
        (["--checkpoint.load_step=20"], 80),
        ([EXCLUDED], 80),
        ([*FULL_LOAD, EXCLUDED], 80),
        (HF_LOAD, 80),
    ],
)
@pytest.mark.parametrize("name", ["run", "it's a run; (x)"])
def test_training_on_doubles_the_steps_within_the_schedule(tmp_path, overrides, steps, name):
    folder = tmp_path / name
    line = describe_next(make_config(folder, *overrides), make_end(folder))
    assert line.startswith("To train on: ")
    values = resolve(line)
    assert values["training"]["steps"] == steps
    assert values["job"]["dump_folder"] == str(folder)
    checkpoint = values["checkpoint"]
    assert checkpoint["load_step"] == -1
    # Of the run's own checkpoints nothing is left out again.
    assert checkpoint["initial_load_path"] or checkpoint["exclude_from_loading"] == []


@pytest.mark.parametrize(
    "overrides",
    [
        [MODEL_ONLY],
        ["--lr_scheduler.total_steps=40"],
        [MODEL_ONLY, *HF_LOAD],
        [MODEL_ONLY, *FULL_LOAD, EXCLUDED],
        [MODEL_ONLY, "--checkpoint.load_step=20"],
    ],
)
def test_what_cannot_be_trained_on_starts_another_run(tmp_path, overrides):
    """A checkpoint of the model alone, or at the end of the schedule."""
    folder = tmp_path / "a run"
    config = make_config(folder, *overrides)
    line = describe_next(config, make_end(folder, is_resumable=MODEL_ONLY not in overrides))
    reason = "last_save_model_only" if MODEL_ONLY in overrides else "total_steps = 40"
    assert reason in line and "To train on" not in line
    values = resolve(line)
    assert values["job"]["dump_folder"] == f"{folder}_from_step_40"
    checkpoint = values["checkpoint"]
    assert checkpoint["initial_load_path"] == f"{folder}/checkpoint/step-40"
    assert checkpoint["initial_load_model_only"] and not checkpoint["initial_load_in_hf"]


def test_a_run_that_was_stopped_is_resumed(tmp_path):
    folder = tmp_path / "run"
    config, end = make_config(folder), make_end(folder, step=7, stopped_by="SIGTERM")
    assert describe_end(config, end) == ["Stopped by SIGTERM after step 7 of 40."]
    line = describe_next(config, end)
    assert line.startswith("To resume: ") and resolve(line)["training"]["steps"] == 40


def test_a_run_out_of_data_is_trained_on_with_them_once_more(tmp_path):
    folder = tmp_path / "run"
    config = make_config(folder, "--data.num_epochs=3")
    end = make_end(folder, step=7, is_out_of_data=True)
    assert describe_end(config, end) == ["Ran out of data after step 7 of 40."]
    assert resolve(describe_next(config, end))["data"]["num_epochs"] == 4


def test_a_run_with_nothing_to_train_says_so_and_how_to_train_on(tmp_path):
    folder = tmp_path / "run"
    config, end = make_config(folder), make_end(folder, num_steps_run=0)
    assert describe_end(config, end) == [
        f"Nothing to train: {folder}/checkpoint/step-40 is at step 40 of 40."
    ]
    assert resolve(describe_next(config, end))["training"]["steps"] == 80


def test_a_moved_run_with_nothing_to_train_is_trained_on_where_it_lies(tmp_path):
    """Its config.toml is written again in its first step only."""
    config = make_config(tmp_path / "old", "--job.description=x")
    config.dump_folder = str((tmp_path / "old").rename(tmp_path / "new"))
    line = describe_next(config, make_end(tmp_path / "new", num_steps_run=0))
    assert resolve(line)["job"]["dump_folder"] == str(tmp_path / "new")


def test_a_first_checkpoint_that_is_at_the_end_already_is_named(tmp_path):
    """Nothing was done: there is no config.toml that a command could name."""
    config = make_config(tmp_path / "run", *FULL_LOAD)
    end = make_end(tmp_path, num_steps_run=0, checkpoint=None)
    assert describe_end(config, end) == ["Nothing to train: /a is at step 40 of 40."]
    assert describe_next(config, end) == "Raise training.steps."


@pytest.mark.parametrize("changes", [{}, {"is_out_of_data": True, "num_steps_run": 0}])
@pytest.mark.parametrize("option", ["--checkpoint.enable=false", "--checkpoint.load_only"])
def test_a_run_that_saves_nothing_offers_no_command(tmp_path, option, changes):
    config = make_config(tmp_path / "run", option, "--data.num_epochs=3")
    assert not saves(config) and saves(make_config(tmp_path / "other"))
    end = make_end(tmp_path, step=7, checkpoint=None, **changes)
    assert describe_next(config, end) == "Nothing was saved."


def test_curves_are_named_where_there_are_any(tmp_path):
    folder = tmp_path / "a run"
    curves, checkpoint = describe_files(make_config(folder), make_end(folder))
    assert shlex.split(curves.partition(": ")[2]) == ["tensorboard", "--logdir", f"{folder}/tb"]
    assert checkpoint == f"Checkpoint: {folder}/checkpoint/step-40"
    config = make_config(folder, "--metrics.enable_tensorboard=false")
    assert describe_files(config, make_end(folder, checkpoint=None)) == ["Checkpoint: none"]


def launch(monkeypatch, world: Sequence[int], path: Path | None) -> str:
    """What starts a run of (ranks, of them on this node), with `path` as the only one searched."""
    for name, value in zip(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), world, strict=True):
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("MASTER_ADDR", "node-3")
    monkeypatch.setenv("PATH", str(path))
    return closing._launch()


def test_the_launcher_starts_as_many_ranks_of_the_same_python(tmp_path, monkeypatch):
    own = Path(sys.executable).parent
    assert launch(monkeypatch, (1, 1), own) == "python -m recipes.train"
    assert launch(monkeypatch, (1, 1), tmp_path) == f"{sys.executable} -m recipes.train"
    for name in ("python", "torchrun"):  # of another Python
        (tmp_path / name).write_text("")
        os.chmod(tmp_path / name, 0o755)
    assert launch(monkeypatch, (1, 1), tmp_path) == f"{sys.executable} -m recipes.train"
    assert launch(monkeypatch, (4, 4), own) == "torchrun --nproc_per_node=4 -m recipes.train"
    assert launch(monkeypatch, (4, 4), tmp_path) == (
        f"{sys.executable} -m torch.distributed.run --nproc_per_node=4 -m recipes.train"
    )


def test_on_several_nodes_the_launcher_says_where_they_meet(tmp_path, monkeypatch):
    own = Path(sys.executable).parent
    assert launch(monkeypatch, (16, 8), own) == (
        "torchrun --nnodes=2 --rdzv_backend=c10d --rdzv_endpoint=node-3:29500 "
        "--nproc_per_node=8 -m recipes.train"
    )
    folder = tmp_path / "run"
    line = describe_next(make_config(folder), make_end(folder))
    assert line.startswith("To train on, on each of 2 nodes: torchrun ")
