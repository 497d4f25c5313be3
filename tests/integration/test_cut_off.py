"""Checkpoints that were cut off: recognised, passed over, never kept in place of a good one."""

import functools
import queue
import shutil
import signal
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from torch.distributed.checkpoint import filesystem

from recipes.run import checkpoint
from recipes.run.checkpoint import RunCheckpointManager
from recipes.run.checkpoint_folder import find_fault, find_steps
from tests.launch import SMALL, assert_equal_states, load_state, run, start
from tests.waiting import block, wait_until

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


def end_saves_late(log: Path, rank: int) -> None:
    """A save in another thread ends only when the run waits for it, and each save when all is
    deleted that is superseded by then, of which a save under way has to show its folder. Note how
    many complete checkpoints there are at that moment."""
    finish = filesystem._FileSystemWriter.finish
    wait_for_saving = RunCheckpointManager._wait_for_saving
    should_purge, remove = RunCheckpointManager._should_purge, RunCheckpointManager._remove
    is_awaited = threading.Event()
    asked, removed = set(), set()

    class Superseded(queue.Queue):
        def put(self, path, *options) -> None:
            asked.add(path)
            super().put(path, *options)

    def remove_and_note(self, path) -> None:
        remove(self, path)
        removed.add(path)

    def wait_for_late_saving(self) -> None:
        is_awaited.set()
        wait_for_saving(self)
        is_awaited.clear()

    def look_late(self) -> bool:
        if self.save_future is not None:
            wait_until(lambda: any(map(find_fault, find_steps(Path(self.folder)).values())))
        return should_purge(self)

    def finish_late(self, metadata, results) -> None:
        if threading.current_thread() is not threading.main_thread():
            wait_until(is_awaited.is_set)
        wait_until(lambda: asked <= removed)
        steps = find_steps(Path(self.path).parent)
        with log.open("a") as stream:
            stream.write(f"{sum(find_fault(path) is None for path in steps.values())}\n")
        finish(self, metadata, results)

    checkpoint.queue = SimpleNamespace(Queue=Superseded)
    filesystem._FileSystemWriter.finish = finish_late
    RunCheckpointManager._wait_for_saving = wait_for_late_saving
    RunCheckpointManager._should_purge, RunCheckpointManager._remove = look_late, remove_and_note


def end_no_save(begun: Path, rank: int) -> None:
    """Files are written, and then nothing happens."""

    def block_there(self, metadata, results) -> None:
        begun.touch()
        block()

    filesystem._FileSystemWriter.finish = block_there


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["disabled", "async"])
def test_old_checkpoints_go_only_after_the_new_one_is_complete(tmp_path, mode):
    arguments = [
        *RUN, f"--job.dump_folder={tmp_path / 'run'}", "--checkpoint.interval=1",
        "--checkpoint.keep_latest_k=2", "--training.steps=4", f"--checkpoint.async_mode={mode}",
    ]  # fmt: skip
    run(arguments, tmp_path / "log", before=functools.partial(end_saves_late, tmp_path / "counts"))
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
        before=functools.partial(end_no_save, tmp_path / "begun"),
    )  # fmt: skip
    wait_until((tmp_path / "begun").exists, rank.text)
    rank.send(signal.SIGKILL)
    rank.wait()
    assert "no .metadata" in str(find_fault(checkpoints / "step-6"))
    assert find_fault(checkpoints / "step-4") is None
