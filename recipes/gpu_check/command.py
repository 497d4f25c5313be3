"""The check as a whole: what is run in which order, and how long each part may take."""

import shlex
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from recipes.command import ArgumentParser, path, report_error
from recipes.gpu_check.cost import measure_cost
from recipes.gpu_check.report import describe_platform, describe_result, write_report
from recipes.gpu_check.section import Section, find_nonfinite, write_logs
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
    """Exit code 0: all that ran has passed; 1: something failed; 2: bad usage; 130: interrupted."""
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

    check = Check(
        output=output,
        facts=describe_platform(given.device),
        command=shlex.join(["python", "scripts/check_gpu.py", *arguments]),
        started=started,
    )
    deadline_s = started + 60 * given.minutes
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        return check.run(
            list_parts(given.device, num_devices, cells, started, deadline_s, output, Path(scratch))
        )


Part = tuple[str, Callable[[Section], None]]
"""Title, and what fills its section as far as it comes."""


@dataclass(kw_only=True)
class Check:
    """Runs every part, whatever another does, and writes the report before and after each: the
    machine may be lent for minutes only."""

    output: Path
    facts: dict[str, Any]
    command: str
    started: float
    """As time.time() counts."""

    sections: list[Section] = field(default_factory=list)

    def run(self, parts: Sequence[Part]) -> int:
        """The exit code: 0 passed, 1 failed, 130 interrupted."""
        for number, (title, fill) in enumerate(parts):
            section = Section(title)
            rest = [Section(name, not_run=["not begun"]) for name, _ in parts[number + 1 :]]
            unfinished = Section(title, not_run=["not finished when this report was written"])
            self._write([*self.sections, unfinished, *rest])
            self.sections.append(section)
            try:
                fill(section)
            except KeyboardInterrupt:
                section.problems.append("interrupted")
                self._report(section, rest)
                return 130
            except (Exception, SystemExit) as error:
                text = f"{type(error).__name__}: {error}".strip().splitlines()[0]
                section.problems.append(f"this part broke off: {text}")
                section.logs[f"part-{number + 1}"] = "".join(traceback.format_exception(error))
            section.problems += find_nonfinite(section)
            self._report(section, rest)
        print(f"Report: {self.output / 'report.md'}")
        return 1 if any(section.problems for section in self.sections) else 0

    def _report(self, section: Section, rest: Sequence[Section]) -> None:
        write_logs(section, self.output)
        self._write([*self.sections, *rest])
        print(f"{section.title}: {describe_result(section)}", flush=True)
        for problem in section.problems:
            print(f"  {problem}", flush=True)

    def _write(self, sections: Sequence[Section]) -> None:
        minutes = (time.time() - self.started) / 60
        write_report(self.output, self.facts, self.command, sections, minutes)


def list_parts(
    device: Device,
    num_devices: int,
    cells: str,
    started: float,
    deadline_s: float,
    output: Path,
    scratch: Path,
) -> list[Part]:
    """In order. Times as time.time() counts."""
    total_s = deadline_s - started
    trained: dict[str, Path] = {}

    def check_trained(section: Section) -> None:
        limit_s = RECIPES_SHARE * total_s
        check_recipes(section, trained, device, num_devices, scratch / "runs", limit_s)

    def check_exported(section: Section) -> None:
        check_exports(section, trained, device, scratch / "exported", EXPORT_SHARE * total_s)

    def check_matrix(section: Section) -> None:
        check_parity(section, device, num_devices, cells, deadline_s - COST_SHARE * total_s, output)

    def check_cost(section: Section) -> None:
        measure_cost(section, device, num_devices, deadline_s)

    return [
        ("The debug recipes, as users start them", check_trained),
        ("Export of what was trained, in stock transformers", check_exported),
        ("Parity with one process", check_matrix),
        ("What NITP costs", check_cost),
    ]


def check_parity(
    section: Section,
    device: Device,
    num_devices: int,
    pattern: str,
    deadline_s: float,
    output: Path,
) -> None:
    """The parity matrix, the most telling cells first, until the deadline."""
    max_ranks = max(num_devices, RANKS_ON_FEW_DEVICES)
    ranks_per_device = -(-max_ranks // num_devices)
    shares = f" --ranks-per-device {ranks_per_device}" if device == "cuda" else ""
    command = f"python scripts/parity.py --device {device}{shares} --only '{pattern}'"
    section.commands = [command]
    outcomes: list[Outcome] = []
    selected = select_cells(device, max_ranks, pattern)
    lines = format_report(selected, device, command, outcomes, deadline_s)
    try:
        for line in islice(lines, 3, None):  # without its head
            section.text.append(line)
    finally:
        for outcome in outcomes:
            name = outcome.selected.id
            if outcome.failure:
                section.problems.append(f"{name}: {outcome.failure}")
            elif outcome.not_run:
                section.not_run.append(f"{name}: {outcome.not_run}")
            if outcome.comparison is not None:
                section.figures[name] = outcome.comparison.values()
        save_logs(outcomes, output)
