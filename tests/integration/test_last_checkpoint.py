"""A last checkpoint of the model alone ends a run, which says so, and begins another."""

import shlex
import shutil
from pathlib import Path

from tests.launch import SMALL, load_state, run, start

MODEL_ONLY = [*SMALL, "--checkpoint.last_save_model_only", "--checkpoint.interval=1"]


def next_command(text: str) -> list[str]:
    """The arguments of the command in the last line that a run has printed of it."""
    (line,) = [line for line in text.splitlines() if "To start another from it" in line]
    command = shlex.split(line.rpartition(": ")[2])
    return command[command.index("recipes.train") + 1 :]


def refused(arguments: list[str], folder: Path) -> str:
    (rank,) = start(arguments, folder)
    assert rank.wait() == 1 and "Traceback" not in rank.text()
    (error,) = rank.errors()
    return error


def test_a_last_checkpoint_of_the_model_alone_ends_its_run_and_begins_another(tmp_path):
    folder = tmp_path / "a run"
    last = folder / "checkpoint" / "step-2"
    arguments = [*MODEL_ONLY, f"--job.dump_folder={folder}"]
    (rank,) = run([*arguments, "--training.steps=2"], tmp_path / "log")
    assert not any(name.startswith("optimizer") for name in load_state(last))
    again = next_command(rank.text())

    # The same command has nothing to do; one for more steps is refused, the weights stay.
    (rank,) = run([*arguments, "--training.steps=2"], tmp_path / "log")
    assert f"Nothing to train: {last} is at step 2 of 2." in rank.text()
    assert next_command(rank.text()) == again
    error = refused([*arguments, "--training.steps=4"], tmp_path / "log")
    assert error.startswith(f"error: training.steps (4) must be at most 2: {last} holds the model")
    assert "checkpoint.initial_load_path" in error and last.is_dir()

    # The printed command trains another; as a whole training the weights cannot be loaded.
    (rank,) = run(again, tmp_path / "log")
    assert f"Loading the checkpoint from {last}." in rank.text()
    assert Path(f"{folder}_from_step_2", "checkpoint", "step-2").is_dir()
    new = [f"--job.dump_folder={tmp_path / 'new'}", "--checkpoint.initial_load_model_only=false"]
    assert refused([*again, *new], tmp_path / "log") == (
        f"error: checkpoint.initial_load_path ({last}) holds the model alone. Set "
        "checkpoint.initial_load_model_only = true."
    )

    # With it moved away the run goes on from the checkpoint before, which is whole.
    shutil.move(last, tmp_path / "kept")
    (rank,) = run([*arguments, "--training.steps=2"], tmp_path / "log")
    assert "Training starts at step 2" in rank.text()


def test_what_was_left_out_of_the_first_checkpoint_is_loaded_of_the_runs_own(tmp_path):
    """A second stage with the data from their start, interrupted after two of its four steps."""
    first, stage = tmp_path / "first", tmp_path / "stage"
    run([*SMALL, f"--job.dump_folder={first}", "--training.steps=1"], tmp_path / "log")
    arguments = [
        *SMALL, f"--job.dump_folder={stage}", "--checkpoint.allow_pickle",
        f"--checkpoint.initial_load_path={first}/checkpoint/step-1",
        "--checkpoint.initial_load_model_only=false",
        "--checkpoint.exclude_from_loading=dataloader,train_state,lr_scheduler",
    ]  # fmt: skip
    for steps in (2, 4):
        (rank,) = run([*arguments, f"--training.steps={steps}"], tmp_path / "log")
    text = rank.text()
    assert f"{stage}/checkpoint/step-2 is loaded whole" in text
    assert "Training starts at step 3" in text
    state = load_state(stage / "checkpoint" / "step-4")
    assert state["dataloader.rows"].tolist() == [4 * 8]
    assert state["optimizer.state.norm.weight.step"].item() == 1 + 4
    assert state["lr_scheduler.last_epoch"] == 4
