"""A sweep of real runs, as a user starts it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launch import SMALL, read_curves
from tests.waiting import DEADLINE_S, wait_until

ROOT = Path(__file__).parents[2]
NAMES = ["baseline_seed=0", "target_layer=1_seed=0"]
NUM_STEPS = 40
SWEEP = """import sys
from recipes.sweep.command import main
sys.exit(main(sys.argv[1:], [sys.executable, "-m", "tests.held_run"]))
"""


def start(folder: Path) -> subprocess.Popen:
    config, *small = [option for option in SMALL if "target_layer" not in option]
    return subprocess.Popen(
        [
            sys.executable, "-c", SWEEP, config, "--grid", "nitp.target_layer=1",
            "--output", str(folder), *small, f"--training.steps={NUM_STEPS}",
            "--checkpoint.interval=10",
        ],
        cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def wait_for_checkpoint(folder: Path, name: str) -> None:
    wait_until(lambda: [*folder.glob(f"{name}/checkpoint/step-*/.metadata")])


def hold(folder: Path, name: str) -> Path:
    """The file that keeps a run of the sweep from making its 16th step."""
    folder.mkdir(exist_ok=True)
    path = folder / f"hold-{name}"
    path.write_text("16")
    return path


def last_saved(folder: Path, name: str) -> int:
    saved = folder.glob(f"{name}/checkpoint/step-*/.metadata")
    return max(int(path.parent.name[5:]) for path in saved)


def children(process: subprocess.Popen) -> list[int]:
    text = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    return [int(child) for child in text.split()]


def finish(sweep: subprocess.Popen) -> str:
    output, _ = sweep.communicate(timeout=DEADLINE_S)
    assert sweep.returncode == 0, output
    return output


@pytest.mark.slow
def test_a_sweep_killed_twice_ends_with_the_figures_of_one_that_was_not(tmp_path):
    """Once by SIGTERM, and once, with its run, without a word."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish(start(whole))

    held = hold(killed, NAMES[0])
    sweep = start(killed)
    wait_for_checkpoint(killed, NAMES[0])
    sweep.send_signal(signal.SIGTERM)
    log = killed / "logs" / f"{NAMES[0]}.log"
    wait_until(lambda: "SIGTERM: finishing the step" in log.read_text(), log.read_text)
    held.unlink()
    assert "The same command goes on." in finish(sweep)
    assert last_saved(killed, NAMES[0]) < NUM_STEPS

    held = hold(killed, NAMES[1])
    sweep = start(killed)
    wait_for_checkpoint(killed, NAMES[1])
    for process in (sweep.pid, *children(sweep)):
        os.kill(process, signal.SIGKILL)
    sweep.communicate(timeout=DEADLINE_S)
    held.unlink()
    assert last_saved(killed, NAMES[1]) < NUM_STEPS

    lines = finish(start(killed)).splitlines()
    assert f"[1/2] {NAMES[0]}: done" in lines
    assert any(line.startswith(f"[2/2] {NAMES[1]}: done, after") for line in lines)
    for name in NAMES:
        assert read_curves(killed / name) == read_curves(whole / name)

    def losses(folder: Path) -> list[list[str]]:
        """The table without what the clock and the machine decide, which come last."""
        lines = (folder / "sweep.md").read_text().splitlines()
        rows = [line.split(" | ") for line in lines if line.startswith("| ")]
        assert rows[0][2] == f"training loss (nats/token), step {NUM_STEPS}"
        return [row[:4] for row in rows]

    assert losses(killed) == losses(whole)
    assert [row[0] for row in losses(whole)[2:]] == ["| NTP", "| NITP"]
