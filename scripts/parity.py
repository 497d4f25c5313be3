"""Print the parity matrix: python scripts/parity.py [--device cuda] [--output FILE.md]

Trains every cell (a technique, dense and MoE) and its reference, and prints their largest relative
differences as Markdown, each line as soon as it is known. The end of the output of a cell that
fails is kept in --logs. Exit code 0: all that ran has passed; 1: a cell failed; 2: bad usage.
"""

import shlex
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import torch

from recipes.command import ArgumentParser, path, report_error, run_command
from recipes.parity.cells import select_cells
from recipes.parity.matrix import Outcome
from recipes.parity.report import format_report, save_logs

MAX_CPU_RANKS = 8


def main(given: Sequence[str]) -> int:
    try:
        return _main(given)
    except ValueError as error:
        return report_error(error, 2)
    except OSError as error:
        return report_error(error, 1)


def _main(given: Sequence[str]) -> int:
    """Raises ValueError for arguments that are none, OSError for files that cannot be written."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: cpu")
    parser.add_argument(
        "--only", default="*", metavar="PATTERN", help="cells to run, such as 'tp_*' or 'moe-*'"
    )
    parser.add_argument("--output", type=path, metavar="FILE.md", help="where to write it as well")
    parser.add_argument(
        "--max-ranks",
        type=int,
        metavar="N",
        help=f"list larger cells as not run; default: the number of GPUs, on CPU {MAX_CPU_RANKS}",
    )
    parser.add_argument(
        "--ranks-per-device",
        type=int,
        default=1,
        metavar="N",
        help="of CUDA, up to this many ranks share a GPU (needs NCCL 2.30 or later)",
    )
    parser.add_argument(
        "--minutes", type=float, metavar="M", help="list what is not done by then as not run"
    )
    parser.add_argument(
        "--logs",
        type=path,
        default=Path("outputs/parity_logs"),
        metavar="FOLDER",
        help="where to keep the output of cells that fail",
    )
    arguments = parser.parse_args(given)
    deadline_s = None if arguments.minutes is None else time.time() + 60 * arguments.minutes
    if arguments.ranks_per_device < 1:
        raise ValueError(f"--ranks-per-device ({arguments.ranks_per_device}) must be at least 1.")
    if arguments.ranks_per_device > 1 and arguments.device == "cpu":
        raise ValueError(
            f"--ranks-per-device ({arguments.ranks_per_device}) has no effect with --device cpu. "
            "Leave it out."
        )
    num_devices = MAX_CPU_RANKS if arguments.device == "cpu" else torch.cuda.device_count()
    if num_devices == 0:
        raise ValueError("--device (cuda) needs a CUDA device. Use --device cpu.")
    max_ranks = num_devices if arguments.max_ranks is None else arguments.max_ranks
    if arguments.device == "cuda":
        most = num_devices * arguments.ranks_per_device
        max_ranks = most if arguments.max_ranks is None else min(arguments.max_ranks, most)
    selected = select_cells(arguments.device, max_ranks, arguments.only)
    if not selected:
        raise ValueError(f"--only ({arguments.only}) fits no cell. Try 'fsdp_*', 'moe-*' or '*'.")
    command = shlex.join(["python", "scripts/parity.py", *given])
    outcomes: list[Outcome] = []
    with arguments.output.open("w") if arguments.output else nullcontext() as file:
        for line in format_report(selected, arguments.device, command, outcomes, deadline_s):
            for stream in (sys.stdout, file) if file else (sys.stdout,):
                print(line, file=stream, flush=True)
    save_logs(outcomes, arguments.logs)
    return 1 if any(outcome.failure for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(run_command(main, is_output_result=True))
