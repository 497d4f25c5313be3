"""scripts/train.sbatch, with stand-ins for SLURM's commands."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "train.sbatch"
SRUN = """#!/bin/bash
echo "$@" > "$FOLDER/command"
save() { trap 'echo ended; exit 1' TERM; echo saving; read -r < "$FOLDER/go"; }
trap 'save; echo TERM > "$FOLDER/signalled"; exit 1' TERM
echo ready
for _ in $(seq $TICKS); do sleep 0.05; done
exit $STATUS
"""
SCONTROL = """#!/bin/bash
if [ "$1" = show ]; then printf 'node7\\nnode8\\n'; else echo "$@" >> "$FOLDER/requeued"; fi
"""


@pytest.fixture
def start(tmp_path):
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)

    def run(ticks: int, status: int) -> subprocess.Popen:
        environment = os.environ | {
            "PATH": f"{tmp_path}:{os.environ['PATH']}", "FOLDER": str(tmp_path),
            "TICKS": str(ticks), "STATUS": str(status), "SLURM_JOB_ID": "42",
            "SLURM_JOB_NODELIST": "node[7-8]", "SLURM_NNODES": "2",
        }  # fmt: skip
        return subprocess.Popen(
            ["bash", SCRIPT, "some.toml", "--training.steps", "7"],
            env=environment, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    return run


@pytest.mark.parametrize("status", [0, 3])
def test_a_job_that_ends_by_itself_is_not_queued_again(start, tmp_path, status):
    job = start(ticks=1, status=status)
    job.communicate(timeout=20)
    assert job.returncode == status
    assert not (tmp_path / "requeued").exists()
    command = (tmp_path / "command").read_text()
    assert "torchrun --nnodes=2" in command and "--rdzv_endpoint=node7:29500" in command
    assert command.endswith("-m recipes.train --job.config_file some.toml --training.steps 7\n")


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_a_signalled_job_lets_its_ranks_save_and_is_queued_again(start, tmp_path, first):
    """Also where SLURM's SIGTERM follows the signal that gave notice."""
    os.mkfifo(tmp_path / "go")
    go = os.open(tmp_path / "go", os.O_RDWR)  # waits for no reader
    job = start(ticks=2000, status=0)  # longer than anyone waits
    assert job.stdout is not None
    assert job.stdout.readline() == "ready\n"
    job.send_signal(first)
    assert job.stdout.readline() == "saving\n"
    job.send_signal(signal.SIGTERM)
    os.write(go, b"\n")
    out, _ = job.communicate(timeout=20)
    assert job.returncode == 0
    assert (tmp_path / "signalled").exists(), "the job waited until its ranks had saved"
    assert (tmp_path / "requeued").read_text() == "requeue 42\n"
    assert out == "stopped by a signal; queueing the job again\n"


def test_the_ranks_get_less_time_than_slurm_gives_the_script():
    text = SCRIPT.read_text()
    given = int(text.split("--signal=B:TERM@")[1].split()[0])
    used = int(text.split("--shutdown_timeout=")[1].split()[0])
    assert used < given
