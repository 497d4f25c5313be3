"""Jobs that start at once on one directory, again and again, and whose owner is killed at random.

    python -m tests.campaign.rivals --output FOLDER [--rounds N] [--seed N]

Each round starts two, three or ten jobs, one of them the run's own and the others with another
learning rate. Whoever owns the directory trains, is killed, and is followed by the next round.
"""

import argparse
import functools
import random
import signal
import sys
from pathlib import Path

from recipes.run.checkpoint_folder import find_fault, find_steps
from recipes.run.lock import LOCK_FILE
from tests.launch import SMALL, Rank, assert_equal_states, hold_after, load_state, run, start
from tests.waiting import let_pass, wait_until

NUM_STEPS = 80
ARGUMENTS = [
    *SMALL, f"--training.steps={NUM_STEPS}", f"--lr_scheduler.total_steps={NUM_STEPS}",
    "--checkpoint.interval=1", "--checkpoint.keep_latest_k=0",
]  # fmt: skip


def survive(folder: Path, num_rounds: int, seed: int) -> int:
    """How many jobs were refused. The end is that of the run which had no rivals."""
    whole, contested = folder / "whole", folder / "contested"
    draw = random.Random(seed)
    run([*ARGUMENTS, f"--job.dump_folder={whole}"], folder / "log_whole")
    run([*ARGUMENTS, f"--job.dump_folder={contested}", "--training.steps=1"], folder / "log_first")
    num_refused = 0
    for round_ in range(num_rounds):
        before = complete_steps(contested)
        num_jobs = draw.choice([2, 3, 10])
        own = draw.randrange(num_jobs)
        jobs = []
        for index in range(num_jobs):
            arguments = [*ARGUMENTS, f"--job.dump_folder={contested}"]
            if index != own:
                arguments.append("--optimizer.lr=0.5")
            jobs += start(
                arguments, folder / f"log{round_}_{index}",
                before=functools.partial(hold_after, 1 + draw.randint(0, 2)),
            )  # fmt: skip
            let_pass(draw.choice([0.0, 0.05]))
        num_refused += play_round(jobs, own, draw)
        lost = before - complete_steps(contested)
        assert not lost, f"round {round_}: checkpoints {sorted(lost)} are gone"
        print(f"round {round_}: {num_jobs} jobs, {len(complete_steps(contested))} checkpoints",
              flush=True)  # fmt: skip
    run([*ARGUMENTS, f"--job.dump_folder={contested}"], folder / "log_last")
    assert not list(contested.glob(f"{LOCK_FILE}*")), "no lock is left for ever"
    final = Path("checkpoint", f"step-{NUM_STEPS}")
    assert_equal_states(load_state(whole / final), load_state(contested / final))
    assert complete_steps(contested) == set(range(1, NUM_STEPS + 1))
    return num_refused


def play_round(jobs: list[Rank], own: int, draw: random.Random) -> int:
    """A rival is refused: for its learning rate, or by the lock. The run's own job, if it was not
    refused by the lock of a rival that was about to be, trains and is killed."""
    for index, job in enumerate(jobs):
        if index != own:
            assert job.wait() == 2, job.text()[-3000:]
            (error,) = job.errors()
            assert "belongs to another job: " in error or "optimizer.lr (" in error
    job = jobs[own]
    wait_until(
        lambda: "Training starts at step" in job.text() or not job.process.is_alive(), job.text
    )
    if job.process.is_alive():
        let_pass(draw.uniform(0.0, 1.5))
        job.send(signal.SIGKILL)
        job.wait()
    else:
        assert "belongs to another job: " in job.errors()[0]
    return len(jobs) - 1


def complete_steps(run: Path) -> set[int]:
    return {s for s, path in find_steps(run / "checkpoint").items() if find_fault(path) is None}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description="Start jobs at once on one directory.")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    num_refused = survive(given.output, given.rounds, given.seed)
    print(f"{given.rounds} rounds, {num_refused} jobs refused; no checkpoint lost, end bit-equal")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
