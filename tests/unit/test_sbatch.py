"""scripts/train.sbatch, with stand-ins for SLURM's commands."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.waiting import DEADLINE_S, wait_for_state

SCRIPT = Path(__file__).parents[2] / "scripts" / "train.sbatch"
SRUN = f"""#!{sys.executable}
import os, signal, sys
from pathlib import Path
folder = Path(os.environ["FOLDER"])

def end(*_):
    print("ended before it had saved", flush=True)
    sys.exit(1)

def save(*_):
    signal.signal(signal.SIGTERM, end)
    print("saving", flush=True)
    (folder / "saved").read_text()  # a pipe: until the test has written to it
    (folder / "signalled").touch()
    sys.exit(1)

signal.signal(signal.SIGTERM, save)
(folder / "command").write_text(" ".join(sys.argv[1:]) + "\\n")
print("ready", flush=True)
if os.environ["STATUS"]:
    sys.exit(int(os.environ["STATUS"]))
while True:
    signal.pause()
"""
SCONTROL = """#!/bin/bash
if [ "$1" = show ]; then
    printf 'node7\\nnode8\\n'
else
    echo "$@" after $(cd "$FOLDER" && ls signalled) >> "$FOLDER/requeued"
fi
"""


@pytest.fixture
def start(tmp_path):
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)

    def run(status: int | None) -> subprocess.Popen:
        """status: what srun ends with; None for one that goes on until it is told to end."""
        environment = os.environ | {
            "PATH": f"{tmp_path}:{os.environ['PATH']}", "FOLDER": str(tmp_path),
            "STATUS": "" if status is None else str(status), "SLURM_JOB_ID": "42",
            "SLURM_JOB_NODELIST": "node[7-8]", "SLURM_NNODES": "2",
        }  # fmt: skip
        return subprocess.Popen(
            ["bash", SCRIPT, "some.toml", "--training.steps", "7"],
            env=environment, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    return run


@pytest.mark.parametrize("status", [0, 3])
def test_a_job_that_ends_by_itself_is_not_queued_again(start, tmp_path, status):
    job = start(status)
    job.communicate(timeout=DEADLINE_S)
    assert job.returncode == status
    assert not (tmp_path / "requeued").exists()
    command = (tmp_path / "command").read_text()
    assert "torchrun --nnodes=2" in command and "--rdzv_endpoint=node7:29500" in command
    assert command.endswith("-m recipes.train --job.config_file some.toml --training.steps 7\n")


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_a_signalled_job_lets_its_ranks_save_and_is_queued_again(start, tmp_path, first):
    """Also where SLURM's SIGTERM follows the signal that gave notice."""
    os.mkfifo(tmp_path / "saved")
    job = start(status=None)
    assert job.stdout is not None
    assert job.stdout.readline() == "ready\n"
    job.send_signal(first)
    assert job.stdout.readline() == "saving\n"
    job.send_signal(signal.SIGTERM)
    wait_for_state(job.pid, "SZ")  # it waits, too; or it has ended, which would be wrong
    (tmp_path / "saved").write_text("go on")
    out, _ = job.communicate(timeout=DEADLINE_S)
    assert job.returncode == 0
    assert (tmp_path / "requeued").read_text() == "requeue 42 after signalled\n"
    assert out == "stopped by a signal; queueing the job again\n"


def test_the_ranks_get_less_time_than_slurm_gives_the_script():
    text = SCRIPT.read_text()
    given = int(text.split("--signal=B:TERM@")[1].split()[0])
    used = int(text.split("--shutdown_timeout=")[1].split()[0])
    assert used < given
