"""Run a grid: python scripts/sweep.py --job.config_file F --grid table.key=v1,v2 [--seeds N]

Trains every combination of the grid with every seed, one after another, and of its values other
than nitp.* a baseline without NITP; prints one table, and keeps it in the sweep's folder. The same
command goes on where it was interrupted. Exit code 0 done, or stopped by a signal and saved; 1 if a
run failed; 2 bad usage; what went wrong is one line on stderr that starts with `error: `.
"""

import argparse
import os
import shlex
import sys
from collections.abc import Sequence

from recipes.command import ArgumentParser, describe, path, path_text, report_error
from recipes.config.arguments import parse_overrides
from recipes.run.lock import RunLock
from recipes.sweep.grid import parse_grid
from recipes.sweep.plan import Plan, Request, build_plan
from recipes.sweep.runner import LOGS, Runner, build_launch
from recipes.sweep.slurm import FILE, format_array
from recipes.sweep.table import format_sweep

TABLE = "sweep.md"


def main(arguments: Sequence[str], launch: Sequence[str] | None = None) -> int:
    """The command; the exit code. launch: what starts recipes.train, in place of its own ways."""
    try:
        given, request = _parse(arguments)
        is_run = not (given.dry_run or given.slurm or given.table)
        plan = build_plan(request, needs_files=is_run)
        launch = launch or build_launch(given.nproc_per_node)
        for note in plan.notes:
            print(f"note: {describe(ValueError(note))}", file=sys.stderr)
        if given.dry_run:
            _print_commands(plan, launch)
            return 0
        if given.slurm:
            return _write_array(plan, given.nproc_per_node)
        if given.table:
            print(_write_table(plan), end="")
            return 0
        with RunLock(str(plan.folder), plan.option):
            return _run(plan, launch)
    except ValueError as error:
        return report_error(error, 2)
    except OSError as error:
        return report_error(error, 1)


def _run(plan: Plan, launch: Sequence[str]) -> int:
    with Runner(plan, launch) as runner:
        runner.run()
    if runner.is_stopped:
        print("Stopped. The same command goes on.")
        return 0
    print(f"\n{_write_table(plan)}")
    if not all(trial.is_done for trial in plan.trials):
        return 1
    folder = shlex.quote(str(plan.folder))
    print(f"Figures: python scripts/compare_runs.py {folder}/*_seed=* --output {folder}/report")
    return 0


def _print_commands(plan: Plan, launch: Sequence[str]) -> None:
    for trial in plan.trials:
        done = "# done: " if trial.is_done else ""
        print(done + shlex.join([*launch, *trial.arguments]))


def _write_array(plan: Plan, num_ranks: int | None) -> int:
    path = plan.folder / FILE
    text = format_array(plan, num_ranks)
    (plan.folder / LOGS).mkdir(parents=True, exist_ok=True)  # SLURM makes no folder for its output
    path.write_text(text, encoding="utf-8")
    print(f"Queue it here, in this folder: sbatch --nodes=1 {shlex.quote(str(path))}")
    print("The table, when its runs are done: the same command with --table in place of --slurm")
    return 0


def _write_table(plan: Plan) -> str:
    text = format_sweep(plan)
    plan.folder.mkdir(parents=True, exist_ok=True)
    (plan.folder / TABLE).write_text(text, encoding="utf-8")
    return text


def _parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, Request]:
    """Raises ValueError for arguments that are none."""
    parser = ArgumentParser(
        prog="sweep.py", description=(__doc__ or "").partition(":")[0],
        epilog="Any other --table.key value is an option of all runs.", repeatable=("--grid",),
    )  # fmt: skip
    add = parser.add_argument
    add("--job.config_file", dest="config_file", type=path_text, required=True, metavar="F")
    add("--grid", action="append", required=True, metavar="table.key=v1,v2",
        help="values of one option; repeat it for another. A list is written [a,b]")  # fmt: skip
    add("--seeds", type=int, default=1, metavar="N",
        help="runs of each, from the configuration's debug.seed and data.seed on")  # fmt: skip
    add("--baseline", type=path_text, metavar="F",
        help="what, with NITP off, differences are from: a file (default: the "
             "configuration's own), or none")  # fmt: skip
    add("--output", type=path, metavar="DIR",
        help="the sweep's folder (default: job.dump_folder with _sweep at its end)")  # fmt: skip
    add("--nproc-per-node", type=int, metavar="N", help="ranks of this machine, by torchrun")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--dry-run", action="store_true", help="print the commands")
    mode.add_argument("--slurm", action="store_true", help=f"write a SLURM array, DIR/{FILE}")
    mode.add_argument("--table", action="store_true", help="print the table of what is done")
    given, common = parser.parse_known_args(arguments)
    for option, value in (("--seeds", given.seeds), ("--nproc-per-node", given.nproc_per_node)):
        if value is not None and value < 1:
            raise ValueError(f"{option} ({value}) must be at least 1.")
    if "RANK" in os.environ:
        raise ValueError(
            "environment variable RANK is set, as torchrun does. Start a sweep without torchrun; "
            "--nproc-per-node starts each run with it."
        )
    baseline = given.baseline or given.config_file
    return given, Request(
        config_file=given.config_file,
        grid=parse_grid(given.grid),
        num_seeds=given.seeds,
        baseline=None if baseline == "none" else baseline,
        common=parse_overrides(common),
        output=given.output,
    )
