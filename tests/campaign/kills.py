"""Kill a run at random moments until it has survived enough, and compare its end with the run that
was never killed.

    python -m tests.campaign.kills --output FOLDER [--seed N]

What was done is kept in FOLDER: start it again to go on where it ended.
"""

import argparse
import functools
import json
import random
import signal
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from recipes.run.checkpoint_folder import find_fault, find_steps
from tests.launch import (
    SMALL,
    Rank,
    assert_equal_states,
    hold_after,
    load_state,
    read_curves,
    run,
    start,
)
from tests.waiting import let_pass, wait_until

NUM_STEPS = 80


@dataclass(frozen=True)
class Plan:
    """One run and how often to kill it."""

    name: str
    num_kills: int
    num_ranks: int
    arguments: list[str]


PLANS = [
    Plan("one_rank", 14, 1, ["--checkpoint.interval=2"]),
    Plan("asynchronous", 10, 1, ["--checkpoint.interval=1", "--checkpoint.async_mode=async"]),
    Plan("workers", 6, 1, ["--checkpoint.interval=1", "--data.num_workers=2"]),
    Plan("two_ranks", 10, 2, ["--checkpoint.interval=1"]),
]


@dataclass
class Kill:
    """One start that was killed."""

    moment: str
    """training, saving, or starting."""
    first_step: int
    """That this start would train, 0 if it did not come so far."""
    last_step: int
    """That it logged."""
    cut_off: list[str]
    """Checkpoints left without their end, newer than any complete one."""
    exit_codes: list[int]


def survive(plan: Plan, folder: Path, seed: int) -> list[Kill]:
    """Kill the run until it has been killed often enough, let it end, and compare."""
    arguments = [
        *SMALL, *plan.arguments, f"--training.steps={NUM_STEPS}",
        f"--lr_scheduler.total_steps={NUM_STEPS}", "--checkpoint.keep_latest_k=2",
    ]  # fmt: skip
    whole, killed, record = folder / "whole", folder / "killed", folder / "kills.jsonl"
    final = Path("checkpoint", f"step-{NUM_STEPS}")
    if not (whole / final / ".metadata").exists():
        run([*arguments, f"--job.dump_folder={whole}"], folder / "log_whole", plan.num_ranks)
    kills = [Kill(**json.loads(line)) for line in record.open()] if record.exists() else []
    arguments.append(f"--job.dump_folder={killed}")
    while len(kills) < plan.num_kills:
        draw = random.Random(f"{seed} {plan.name} {len(kills)}")
        num_steps = draw.randint(1, 3)
        # Two more, for a save between them; then it is there to be killed.
        ranks = start(arguments, folder / f"log{len(kills)}", plan.num_ranks,
                      before=functools.partial(hold_after, num_steps + 2))  # fmt: skip
        kills.append(kill_once(ranks, num_steps, killed / "checkpoint", draw))
        if kills[-1].first_step and len(kills) > 1:
            assert_passed_over(kills[-2].cut_off, ranks[0])
        with record.open("a") as stream:
            stream.write(json.dumps(asdict(kills[-1])) + "\n")
        print(f"{plan.name} {len(kills)}/{plan.num_kills}: {kills[-1]}", flush=True)
    ranks = run(arguments, folder / "log_last", plan.num_ranks)
    assert_passed_over(kills[-1].cut_off, ranks[0])
    assert_equal_states(load_state(whole / final), load_state(killed / final))
    curves = read_curves(whole)
    assert curves == read_curves(killed), "the curves, too, are whole"
    kept = find_steps(killed / "checkpoint")
    assert len(kept) == 2 and not any(map(find_fault, kept.values())), kept
    return kills


def assert_passed_over(names: list[str], rank: Rank) -> None:
    for name in names:
        assert f"{name} is passed over: " in rank.text(), rank.text()[-3000:]


def kill_once(ranks: list[Rank], num_steps: int, checkpoints: Path, draw: random.Random) -> Kill:
    """Kill one rank with SIGKILL at a random moment after `num_steps` steps; the others must end by
    themselves.

    While they start, all of them: ranks that have not met cannot miss each other. A launcher does.
    """
    moment = draw.choices(["training", "saving", "starting"], weights=[5, 4, 1])[0]
    if moment == "starting":
        let_pass(draw.uniform(0.0, 2.0))
    else:
        ranks[0].wait_for("Training starts at step")
        first = int(ranks[0].text().split("Training starts at step ")[1].split()[0])
        ranks[0].wait_for(f"step {first + num_steps - 1:>6}  loss")
        if moment == "saving":
            newest = max(find_steps(checkpoints), default=0)
            wait_until(
                lambda: (
                    max(find_steps(checkpoints), default=0) > newest
                    or not all(rank.process.is_alive() for rank in ranks)
                )
            )
            let_pass(draw.uniform(0.0, 0.1))
        else:
            let_pass(draw.uniform(0.0, 0.4))
    victims = ranks if moment == "starting" else [draw.choice(ranks)]
    for victim in victims:
        assert victim.process.is_alive(), victim.text()[-2000:]
        victim.send(signal.SIGKILL)
    codes = [rank.wait() for rank in ranks]
    assert all(codes[ranks.index(victim)] == -signal.SIGKILL for victim in victims)
    assert all(code != 0 for code in codes)
    text = ranks[0].text()
    started = text.split("Training starts at step ")
    steps = [int(part.split()[0]) for part in text.split("INFO - step ")[1:]]
    folders = find_steps(checkpoints)
    faulty = {step for step, path in folders.items() if find_fault(path)}
    newest = max(folders.keys() - faulty, default=0)
    return Kill(
        moment=moment,
        first_step=int(started[1].split()[0]) if len(started) > 1 else 0,
        last_step=max(steps, default=0),
        cut_off=[folders[step].name for step in faulty if step > newest],
        exit_codes=codes,
    )


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description="Kill runs at random and compare their ends.")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plan", choices=[plan.name for plan in PLANS])
    given = parser.parse_args(arguments)
    kills: list[Kill] = []
    for plan in PLANS:
        if given.plan in (None, plan.name):
            kills += survive(plan, given.output / plan.name, given.seed)
    moments = {m: sum(k.moment == m for k in kills) for m in ("training", "saving", "starting")}
    print(f"{len(kills)} kills survived: {moments}; {sum(bool(k.cut_off) for k in kills)} left a "
          "checkpoint cut off; final states bit-equal")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
