"""The launcher that users have: what torchrun makes of signals, mistakes and ranks that die."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from recipes.run.checkpoint_folder import find_steps
from tests.launch import SMALL, compose
from tests.waiting import DEADLINE_S, wait_until

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


class Job:
    """torchrun with two ranks, its output in a file."""

    def __init__(self, log: Path, *arguments: str, max_restarts: int = 0) -> None:
        self.log = log
        self.process = subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
             f"--max-restarts={max_restarts}", "-m", "recipes.train",
             *compose([*SMALL, *arguments])],
            cwd=ROOT, stdout=log.open("w"), stderr=subprocess.STDOUT,
        )  # fmt: skip

    def text(self) -> str:
        return self.log.read_text()

    def errors(self) -> list[str]:
        return [line for line in self.text().splitlines() if line.startswith("error: ")]

    def wait_for(self, text: str) -> None:

        def has_printed() -> bool:
            has_ended = self.process.poll() is not None
            return text in self.text() or has_ended

        wait_until(has_printed, self.text)
        assert text in self.text(), self.text()[-3000:]

    def wait(self) -> int:
        """torchrun's exit code."""
        return self.process.wait(DEADLINE_S)

    def ranks(self) -> list[int]:
        """Process ids."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in children.read_text().split()]


def test_a_signal_to_torchrun_saves_and_the_run_resumes(tmp_path):
    run = tmp_path / "run"
    arguments = [f"--job.dump_folder={run}", "--checkpoint.interval=100000"]
    job = Job(tmp_path / "log", *arguments, "--training.steps=99999")
    job.wait_for("step      3  loss")
    job.process.send_signal(signal.SIGTERM)
    assert job.wait() == 1, "torchrun's own code, whatever its ranks return"
    assert "Stopped by SIGTERM after step" in job.text()
    assert re.search("To resume: .* --nproc_per_node=2 -m recipes.train", job.text())
    assert "exitcode: -" not in job.text() and "error: " not in job.text()
    (step,) = find_steps(run / "checkpoint")
    job = Job(tmp_path / "log", *arguments, f"--training.steps={step + 2}")
    assert job.wait() == 0, job.text()[-3000:]
    assert f"Training starts at step {step + 1}" in job.text()


def test_a_rank_that_is_killed_ends_the_job(tmp_path):
    job = Job(tmp_path / "log", f"--job.dump_folder={tmp_path / 'run'}", "--training.steps=99999")
    job.wait_for("step      2  loss")
    ranks = job.ranks()
    os.kill(ranks[1], signal.SIGKILL)
    assert job.wait() == 1
    assert not any(Path(f"/proc/{pid}").exists() for pid in ranks)


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ("--training.global_batch_size=9", "training.global_batch_size (9)"),
        ("--data.num_streams=7", "data.num_streams (7)"),
    ],
)
def test_a_mistake_is_printed_once(tmp_path, mistake, message):
    """Before the ranks can talk to each other, and after."""
    job = Job(tmp_path / "log", f"--job.dump_folder={tmp_path / 'run'}", mistake)
    assert job.wait() == 1
    (error,) = job.errors()
    assert message in error
    assert not (tmp_path / "run").exists()


def test_a_restart_by_torchrun_finds_the_directory_free(tmp_path):
    """Rank 0, which owned it, is killed. In its second attempt torchrun's store (torch 2.14.1)
    still has the addresses of the first, so that gloo cannot connect, with any program: the run is
    started again here."""
    folder = tmp_path / "run"
    arguments = [
        f"--job.dump_folder={folder}", "--training.steps=40", "--checkpoint.interval=1",
        "--checkpoint.keep_latest_k=2",
    ]  # fmt: skip
    job = Job(tmp_path / "log", *arguments, max_restarts=1)
    job.wait_for("step      3  loss")
    os.kill(job.ranks()[0], signal.SIGKILL)
    job.wait_for(f"Taking over {folder / 'run.lock'}, of host")
    job.wait()
    assert "belongs to another job" not in job.text()
    job = Job(tmp_path / "log", *arguments)
    assert job.wait() == 0, job.text()[-3000:]
    assert [*find_steps(folder / "checkpoint")] == [39, 40]
    assert not (folder / "run.lock").exists()
