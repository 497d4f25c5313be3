"""Checkpoints that were cut off: recognised, passed over, never kept in place of a good one."""

import functools
import shutil
import signal
import time
from pathlib import Path

import pytest
from torch.distributed.checkpoint import filesystem

from recipes.run.checkpoint import RunCheckpointManager
from recipes.run.checkpoint_folder import find_fault, find_steps
from tests.launch import SMALL, assert_equal_states, load_state, run, start

RUN = [*SMALL, "--lr_scheduler.total_steps=6", "--checkpoint.interval=2"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A run of 6 steps that kept all its checkpoints."""
    folder = tmp_path_factory.mktemp("finished")
    arguments = [f"--job.dump_folder={folder / 'run'}", "--checkpoint.keep_latest_k=0"]
    run([*RUN, *arguments, "--training.steps=6"], folder / "log")
    return folder / "run"


def truncate(checkpoint: Path) -> None:
    file = checkpoint / "__0_0.distcp"
    file.write_bytes(file.read_bytes()[:-1])


def test_a_cut_off_checkpoint_is_passed_over_by_name_and_replaced(tmp_path, finished):
    """The newest was cut off, an older one too; and a backup lies there that is no checkpoint."""
    again = tmp_path / "run"
    shutil.copytree(finished, again)
    checkpoints = again / "checkpoint"
    (checkpoints / "step-3").mkdir()  # a save that was killed at once
    shutil.copytree(checkpoints / "step-2", checkpoints / "step-2.mine")
    truncate(checkpoints / "step-6")
    arguments = [f"--job.dump_folder={again}", "--checkpoint.keep_latest_k=2"]
    (rank,) = run([*RUN, *arguments, "--training.steps=6"], tmp_path / "log")
    text = rank.text()
    assert f"{checkpoints}/step-6 is passed over: __0_0.distcp has" in text
    assert "step-3 is passed over" not in text, "it is older than the one that is loaded"
    assert "Training starts at step 5" in text
    ends = [load_state(run / "checkpoint" / "step-6") for run in (finished, again)]
    assert_equal_states(*ends)
    assert sorted(p.name for p in checkpoints.iterdir()) == ["step-2.mine", "step-4", "step-6"]


def slow_down(log: Path, rank: int) -> None:
    """Take a second for the end of each save, and note how many complete checkpoints there are;
    look for superseded ones when the folder of the new one is there."""
    finish = filesystem._FileSystemWriter.finish
    should_purge = RunCheckpointManager._should_purge

    def finish_late(self, metadata, results) -> None:
        time.sleep(1)
        steps = find_steps(Path(self.path).parent)
        with log.open("a") as stream:
            stream.write(f"{sum(find_fault(path) is None for path in steps.values())}\n")
        finish(self, metadata, results)

    def look_late(self) -> bool:
        time.sleep(0.5)
        return should_purge(self)

    filesystem._FileSystemWriter.finish = finish_late
    RunCheckpointManager._should_purge = look_late


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["disabled", "async"])
def test_old_checkpoints_go_only_after_the_new_one_is_complete(tmp_path, mode):
    arguments = [
        *RUN, f"--job.dump_folder={tmp_path / 'run'}", "--checkpoint.interval=1",
        "--checkpoint.keep_latest_k=2", "--training.steps=4", f"--checkpoint.async_mode={mode}",
    ]  # fmt: skip
    run(arguments, tmp_path / "log", before=functools.partial(slow_down, tmp_path / "counts"))
    assert (tmp_path / "counts").read_text().split() == ["0", "1", "2", "2"]
    assert list(find_steps(tmp_path / "run" / "checkpoint")) == [3, 4]


@pytest.mark.slow
def test_saving_a_step_anew_never_leaves_the_old_metadata_beside_new_files(tmp_path, finished):
    """A later folder without its end, as a kill leaves it, is overwritten and killed again."""
    again = tmp_path / "run"
    shutil.copytree(finished, again)
    checkpoints = again / "checkpoint"
    truncate(checkpoints / "step-6")
    (rank,) = start(
        [*RUN, f"--job.dump_folder={again}", "--training.steps=6"], tmp_path / "log",
        before=functools.partial(slow_down, tmp_path / "counts"),
    )  # fmt: skip
    rank.wait_for("Saving a full checkpoint at last step, step 6")
    time.sleep(0.7)  # the files are written, the end is not
    rank.send(signal.SIGKILL)
    rank.wait()
    assert "no .metadata" in str(find_fault(checkpoints / "step-6"))
    assert find_fault(checkpoints / "step-4") is None
