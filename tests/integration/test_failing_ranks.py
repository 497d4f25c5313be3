"""Ranks that fail, or should never have met: one report, and no rank left waiting."""

import functools
import os
import signal
from pathlib import Path

import pytest

from recipes.data.loader import PackedDataLoader
from tests.launch import SMALL, all_errors, start, wait
from tests.waiting import block

RUN = [*SMALL, "--lr_scheduler.total_steps=8", "--checkpoint.interval=2"]


def fail_at_step_2(how: str, rank: int) -> None:
    """Rank 1 fails in its data; rank 0 is in a collective, or busy for longer than anyone waits."""
    iterate = PackedDataLoader.__iter__

    def interrupted(self):
        for index, batch in enumerate(iterate(self)):
            if index == 2 and rank == 1:
                raise ValueError("data/shard.jsonl:7 is not valid JSON. Remove the line.")
            if index == 2 and how == "busy":
                block()
            yield batch

    PackedDataLoader.__iter__ = interrupted


@pytest.mark.parametrize("how", [pytest.param("collective", marks=pytest.mark.slow), "busy"])
def test_one_rank_that_fails_is_reported_once_and_ends_the_others(tmp_path, how):
    folder = tmp_path / "run"
    ranks = start(
        [*RUN, f"--job.dump_folder={folder}", "--training.steps=8"], tmp_path / "log", 2,
        before=functools.partial(fail_at_step_2, how),
    )  # fmt: skip
    assert wait(ranks) == [1, 1]
    assert all_errors(ranks) == ["error: data/shard.jsonl:7 is not valid JSON. Remove the line."]
    assert not any("Traceback" in rank.text() for rank in ranks)


@pytest.mark.slow
def test_a_rank_that_is_killed_ends_the_others(tmp_path):
    steps = ["--training.steps=99999", "--lr_scheduler.total_steps=99999"]
    arguments = [*RUN, f"--job.dump_folder={tmp_path / 'run'}", *steps]
    ranks = start(arguments, tmp_path / "log", 2)
    ranks[0].wait_for("step      2")
    ranks[1].send(signal.SIGKILL)
    assert wait(ranks) == [1, -signal.SIGKILL]


def go_to(folder: Path, rank: int) -> None:
    """Each rank finds its own `data` folder: machines whose disks differ."""
    root = Path.cwd()
    os.chdir(folder / f"machine{rank}")
    for name in ("train_configs",):
        Path(name).symlink_to(root / name)


def test_ranks_that_differ_are_refused_by_what_they_differ_in(tmp_path):
    folder = tmp_path / "run"
    arguments = [*RUN, f"--job.dump_folder={folder}", "--training.steps=4"]
    ranks = start(arguments, tmp_path / "log", 2, for_rank=lambda r: [f"--optimizer.lr={r + 1}"])
    assert wait(ranks) == [2, 2]
    (error,) = all_errors(ranks)
    assert "Ranks 0 and 1 differ in optimizer.lr (1.0 / 2.0). Start all ranks with" in error
    assert not folder.exists()


@pytest.mark.slow
def test_ranks_with_other_data_are_refused(tmp_path):
    for rank, length in enumerate((3000, 3001)):
        data = tmp_path / f"machine{rank}" / "data"
        data.mkdir(parents=True)
        for index in range(8):
            (data / f"{index}.txt").write_text("word " * 3000)
        (data / "7.txt").write_text("x" * length)
    folder = tmp_path / "run"
    arguments = [
        *RUN, f"--job.dump_folder={folder}", "--training.steps=4",
        "--data.sources=[{path='data/*.txt'}]", "--data.num_streams=8",
        "--data.validation_fraction=0",
    ]  # fmt: skip
    ranks = start(arguments, tmp_path / "log", 2, before=functools.partial(go_to, tmp_path))
    assert wait(ranks) == [2, 2]
    (error,) = all_errors(ranks)
    assert "Ranks 0 and 1 differ in size of data file 7.txt (3000 / 3001)" in error
    assert not folder.exists()
