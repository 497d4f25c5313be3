"""Jobs that meet in one run directory: the one that owns it loses nothing."""

import functools
import json
import os
import shutil
import signal
import tomllib
from collections.abc import Sequence
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from recipes.data.loader import PackedDataLoader
from recipes.run.checkpoint_folder import find_fault, find_steps
from recipes.run.lock import LOCK_FILE
from tests.launch import SMALL, Rank, all_errors, hold_after, load_state, run, start, wait
from tests.waiting import block, wait_for_state, wait_until

RUN = [
    *SMALL, "--training.steps=8", "--lr_scheduler.total_steps=8", "--checkpoint.interval=1",
    "--checkpoint.keep_latest_k=0",
]  # fmt: skip


def fail_at_the_first_batch(
    rank: int, folder: Path | None = None, moments: Sequence[str] = ("at once", "at once")
) -> None:
    """moments: when each rank fails; "last" is when the first has given `folder` up."""

    def fail(self):
        if moments[rank] == "never":
            block()
        if moments[rank] == "last":
            assert folder is not None
            wait_until(lambda: not (folder / LOCK_FILE).exists())
        raise ValueError("data/shard.jsonl:7 is not valid JSON. Remove the line.")
        yield

    PackedDataLoader.__iter__ = fail


def owner(folder: Path, tmp_path: Path, *arguments: str) -> Rank:
    """A job that has made 3 steps of its run, and goes on when it is told to."""
    log = tmp_path / "owner"
    (rank,) = start(
        [*RUN, f"--job.dump_folder={folder}", "--comm.trace_buf_size=0", *arguments],
        log, before=functools.partial(hold_after, 3, until=log / "go"),
    )  # fmt: skip
    rank.wait_for("step      3  loss")
    return rank


def go_on(rank: Rank) -> None:
    (rank.log.parent / "go").touch()


def assert_whole(rank: Rank, folder: Path) -> None:
    """The owner goes on to its end, and all that it wrote is there."""
    go_on(rank)
    assert rank.wait() == 0, rank.text()[-3000:]
    steps = find_steps(folder / "checkpoint")
    assert list(steps) == [*range(1, 9)] and not any(map(find_fault, steps.values()))
    assert (folder / "config.toml").is_file()
    assert not (folder / LOCK_FILE).exists()


@pytest.mark.parametrize(
    ("arguments", "before"),
    [
        (["--model.ffn_dim=128"], None),
        pytest.param([], fail_at_the_first_batch, marks=pytest.mark.slow),
        # It would go on from the owner's checkpoints, and delete the newest when it saved.
        (["--optimizer.lr=0.5", "--checkpoint.keep_latest_k=2"], None),
    ],
    ids=["another model", "bad data", "another learning rate"],
)
def test_a_second_job_is_refused_and_the_owner_loses_nothing(tmp_path, arguments, before):
    """The second has two ranks, of which one comes late: it waits for one that is gone."""
    folder = tmp_path / "run"
    first = owner(folder, tmp_path)
    second = start(
        [*RUN, f"--job.dump_folder={folder}", *arguments,
         "--comm.init_timeout_seconds=1", "--debug.enable_structured_logging=true"],
        tmp_path / "second", 2, before=before,
    )  # fmt: skip
    assert second[0].wait() == 2
    (error,) = second[0].errors()
    name = f"host {os.uname().nodename}, process {first.process.pid}"
    assert f"belongs to another job: {name}, since " in error
    assert second[1].wait() != 0
    assert_whole(first, folder)
    assert not (folder / "structured_logs").exists(), "the second wrote nothing there"
    assert not (folder / "comm_traces").exists(), "nor did the second's other rank"


def test_a_job_that_fails_in_the_folder_around_a_run_leaves_the_run_alone(tmp_path):
    """./outputs by default, where ./outputs/debug trains."""
    outputs = tmp_path / "outputs"
    (outer,) = start(
        [*RUN, f"--job.dump_folder={outputs}",
         "--debug.enable_structured_logging=true"],
        tmp_path / "outer", before=wait_then_fail(tmp_path / "go"),
    )  # fmt: skip
    outer.wait_for("Training starts at step 1")
    inner = owner(outputs / "debug", tmp_path)
    (tmp_path / "go").touch()
    assert outer.wait() == 1
    assert os.listdir(outputs) == ["debug"], "and of its own it left nothing"
    assert_whole(inner, outputs / "debug")


def wait_then_fail(signal_file: Path):
    return functools.partial(_wait_then_fail, signal_file)


def _wait_then_fail(signal_file: Path, rank: int) -> None:
    def fail(self):
        wait_until(signal_file.exists)
        raise ValueError("data/shard.jsonl:7 is not valid JSON. Remove the line.")
        yield

    PackedDataLoader.__iter__ = fail


@pytest.mark.parametrize("num_jobs", [3, pytest.param(10, marks=pytest.mark.slow)])
def test_of_jobs_that_start_at_once_exactly_one_trains(tmp_path, num_jobs):
    folder = tmp_path / "run"
    arguments = [*RUN, f"--job.dump_folder={folder}"]
    jobs = [
        start([*arguments, f"--optimizer.lr={i + 1}e-4"], tmp_path / f"job{i}",
              before=functools.partial(hold_after, 1, until=tmp_path / "go"))[0]
        for i in range(num_jobs)
    ]  # fmt: skip
    wait_until(lambda: sum(job.process.is_alive() for job in jobs) <= 1)
    (tmp_path / "go").touch()
    codes = wait(jobs)
    assert sorted(codes) == [0] + [2] * (num_jobs - 1)
    winner = jobs[codes.index(0)]
    assert all(f"process {winner.process.pid}" in error for error in all_errors(jobs))
    assert len(all_errors(jobs)) == num_jobs - 1
    assert_whole(winner, folder)
    config = tomllib.loads((folder / "config.toml").read_text())
    assert config["optimizer"]["lr"] == pytest.approx((codes.index(0) + 1) * 1e-4)


@pytest.mark.parametrize("mode", ["disabled", pytest.param("async", marks=pytest.mark.slow)])
def test_a_job_that_lost_its_directory_stops_and_neither_saves_nor_deletes(tmp_path, mode):
    """It was paused for so long that another host took over, and has saved newer steps."""
    folder = tmp_path / "run"
    rank = owner(
        folder, tmp_path, "--checkpoint.keep_latest_k=2", f"--checkpoint.async_mode={mode}"
    )
    rank.send(signal.SIGSTOP)
    wait_for_state(rank.process.pid, "T")
    path = folder / LOCK_FILE
    other = json.loads(path.read_text().splitlines()[0]) | {"host": "node9", "pid": 5}
    path.unlink()
    path.write_text(f"{json.dumps(other)}\n{7:012d}\n")
    for step in (1, 90):
        shutil.rmtree(folder / "checkpoint" / f"step-{step}", ignore_errors=True)
        (folder / "checkpoint" / f"step-{step}").mkdir()
    before = sorted((p, p.stat().st_mtime_ns) for p in (folder / "checkpoint").rglob("*.metadata"))
    rank.send(signal.SIGCONT)
    go_on(rank)
    assert rank.wait() == 1
    (error,) = rank.errors()
    assert "is no longer this job's: it is of host node9, process 5" in error
    assert "Traceback" not in rank.text()
    after = sorted((p, p.stat().st_mtime_ns) for p in (folder / "checkpoint").rglob("*.metadata"))
    assert set(before) <= set(after) and len(after) <= len(before) + 1
    assert {1, 90} <= find_steps(folder / "checkpoint").keys()
    assert "node9" in path.read_text(), "nor does it give up the other's lock"


@pytest.mark.parametrize(
    "moments",
    [
        ("at once",),
        # When the first has given the directory up, the second has not removed its log.
        ("at once", "last"),
        ("never", "at once"),
        pytest.param(("at once", "never"), marks=pytest.mark.slow),
    ],
    ids=["one rank", "the second fails later", "the first is busy", "the second is busy"],
)
def test_a_start_that_fails_before_its_first_step_is_done_leaves_nothing(tmp_path, moments):
    folder = tmp_path / "runs" / "run"
    ranks = start(
        [*RUN, f"--job.dump_folder={folder}",
         "--debug.enable_structured_logging=true", "--debug.save_config_file=config.json"],
        tmp_path / "log", len(moments),
        before=functools.partial(fail_at_the_first_batch, folder=folder, moments=moments),
    )  # fmt: skip
    assert wait(ranks) == [1] * len(moments)
    assert len(all_errors(ranks)) == 1
    assert os.listdir(tmp_path / "runs") == []


def test_what_was_in_the_directory_before_a_start_that_fails_stays(tmp_path):
    folder = tmp_path / "run"
    (folder / "structured_logs").mkdir(parents=True)
    (folder / "notes.txt").write_text("mine")
    (folder / "config.json").write_text("mine")
    (rank,) = start(
        [*RUN, f"--job.dump_folder={folder}",
         "--debug.enable_structured_logging=true"],
        tmp_path / "log", before=fail_at_the_first_batch,
    )  # fmt: skip
    assert rank.wait() == 1
    assert sorted(os.listdir(folder)) == ["config.json", "notes.txt", "structured_logs"]


def test_a_killed_job_starts_again_at_once_and_its_curves_have_each_step_once(tmp_path):
    """Within a minute: by TorchTitan's names both starts would write to one folder."""
    folder = tmp_path / "run"
    first = owner(folder, tmp_path, "--checkpoint.interval=2", "--training.steps=4")
    first.send(signal.SIGKILL)
    first.wait()
    assert (folder / LOCK_FILE).exists()
    arguments = [*RUN, f"--job.dump_folder={folder}", "--training.steps=4"]
    (again,) = run([*arguments, "--checkpoint.interval=2"], tmp_path / "again")
    assert f"Taking over {folder / LOCK_FILE}, of host" in again.text()
    assert f"process {first.process.pid}, since" in again.text()
    assert "Training starts at step 3" in again.text()
    assert not (folder / LOCK_FILE).exists()
    steps = []
    for curves in sorted((folder / "tb").iterdir()):
        events = EventAccumulator(str(curves)).Reload().Scalars("loss_metrics/ntp_loss")
        steps.append([event.step for event in events])
    assert steps[-1] == [3, 4] and len(steps) == 2
    assert all(len(set(each)) == len(each) for each in steps)
    assert load_state(folder / "checkpoint" / "step-4")["train_state.step"] == 4
