"""The check as a whole: what is run in which order, and how long each part may take."""

import shlex
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path

import torch

from recipes.command import ArgumentParser, path, report_error
from recipes.gpu_check.cost import measure_cost
from recipes.gpu_check.report import describe_platform, describe_result, write_report
from recipes.gpu_check.section import Section, write_logs
from recipes.gpu_check.trained import check_exports, check_recipes
from recipes.parity.cells import select_cells
from recipes.parity.matrix import Outcome
from recipes.parity.report import format_report, save_logs
from recipes.parity.world import Device
from recipes.run.folder import check_is_writable

RECIPES_SHARE, EXPORT_SHARE, COST_SHARE = 0.4, 0.2, 0.3
"""Of the minutes: the most that these parts may take. The matrix has what they leave."""

RANKS_ON_FEW_DEVICES = 4
"""Ranks that a machine with fewer devices runs, several on one."""

CPU_CELLS = "dense-[fc]*_2*"
"""Without a GPU the matrix is scripts/parity.py's; here a few cells show that the way holds."""


def main(arguments: Sequence[str]) -> int:
    """Exit code 0: all that ran has passed; 1: something failed; 2: bad usage."""
    try:
        return _main(arguments)
    except ValueError as error:
        return report_error(error, 2)
    except OSError as error:
        return report_error(error, 1)


def _main(arguments: Sequence[str]) -> int:
    started = time.time()
    parser = ArgumentParser(prog="check_gpu.py", description=__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="default: cuda")
    parser.add_argument(
        "--minutes", type=float, default=8, metavar="M",
        help="stop after this long and say what was not run (default: 8)",
    )  # fmt: skip
    parser.add_argument(
        "--cells", metavar="PATTERN", help="cells of the parity matrix; default: all"
    )
    parser.add_argument(
        "--output", type=path, metavar="FOLDER",
        help="for report.md, report.json and logs; default: outputs/check_gpu/TIME",
    )  # fmt: skip
    given = parser.parse_args(arguments)
    num_devices = torch.cuda.device_count() if given.device == "cuda" else 1
    if num_devices == 0:
        raise ValueError("--device (cuda) needs a CUDA device. Use --device cpu.")
    if not given.minutes > 0:
        raise ValueError(f"--minutes ({given.minutes:g}) must be greater than 0.")
    cells = given.cells or ("*" if given.device == "cuda" else CPU_CELLS)
    if not select_cells(given.device, max_ranks=1, pattern=cells):
        raise ValueError(f"--cells ({cells}) fits no cell. Try 'fsdp_*', 'moe-*' or '*'.")
    output = given.output or Path("outputs/check_gpu", f"{datetime.now():%Y%m%d-%H%M%S}")
    check_is_writable(str(output), "--output")
    if (output / "report.md").exists():
        raise ValueError(f"--output ({output}) has a report. Name another folder.")
    output.mkdir(parents=True, exist_ok=True)

    facts = describe_platform(given.device)
    command = shlex.join(["python", "scripts/check_gpu.py", *arguments])
    sections: list[Section] = []
    deadline_s = started + 60 * given.minutes
    for section in run_parts(given.device, num_devices, cells, started, deadline_s, output):
        sections.append(section)
        write_logs(section, output)
        # After each part: the machine may be lent for minutes only.
        write_report(output, facts, command, sections, (time.time() - started) / 60)
        print(f"{section.title}: {describe_result(section)}", flush=True)
        for problem in section.problems:
            print(f"  {problem}", flush=True)
    print(f"Report: {output / 'report.md'}")
    return 1 if any(section.problems for section in sections) else 0


def run_parts(
    device: Device,
    num_devices: int,
    cells: str,
    started: float,
    deadline_s: float,
    output: Path,
) -> Iterator[Section]:
    """Each part when it is done. Times as time.time() counts."""
    total_s = deadline_s - started
    with tempfile.TemporaryDirectory() as scratch:
        section, runs = check_recipes(
            device, num_devices, Path(scratch, "runs"), RECIPES_SHARE * total_s
        )
        yield section
        yield check_exports(runs, device, Path(scratch, "exported"), EXPORT_SHARE * total_s)
    yield check_parity(device, num_devices, cells, deadline_s - COST_SHARE * total_s, output)
    yield measure_cost(device, num_devices, deadline_s)


def check_parity(
    device: Device, num_devices: int, pattern: str, deadline_s: float, output: Path
) -> Section:
    """The parity matrix, the most telling cells first, until the deadline."""
    max_ranks = max(num_devices, RANKS_ON_FEW_DEVICES)
    ranks_per_device = -(-max_ranks // num_devices)
    shares = f" --ranks-per-device {ranks_per_device}" if device == "cuda" else ""
    command = f"python scripts/parity.py --device {device}{shares} --only '{pattern}'"
    section = Section("Parity with one process", commands=[command])
    outcomes: list[Outcome] = []
    selected = select_cells(device, max_ranks, pattern)
    section.text = list(format_report(selected, device, command, outcomes, deadline_s))[3:]
    for outcome in outcomes:
        name = outcome.selected.id
        if outcome.failure:
            section.problems.append(f"{name}: {outcome.failure}")
        elif outcome.not_run:
            section.not_run.append(f"{name}: {outcome.not_run}")
        if outcome.comparison is not None:
            section.figures[name] = outcome.comparison.values()
    save_logs(outcomes, output)
    return section
