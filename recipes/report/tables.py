"""The report's tables, and the words that they need, for the page and for comparison.md."""

from collections.abc import Sequence
from typing import NamedTuple

from recipes.report.groups import list_differences
from recipes.report.measures import Row
from recipes.report.phases import describe_phases
from recipes.report.report import Report
from recipes.report.tags import NITP
from recipes.report.text import (
    read_difference,
    show_difference,
    show_mean,
    show_seed,
    show_step,
)

SPREAD = (
    "Numbers are the mean +- the sample standard deviation over a group's runs, which differ only "
    "in seed. Differences have the 95 % interval of the mean difference between runs of the same "
    "seed (Student's t): one without 0 reads higher or lower, one with 0 no clear difference."
)
PAPER = (
    "The last column has the end points of the paper's 9B model (arXiv 2605.24956; its geometry "
    "and NITP loss are read off figures): another scale, width and corpus. Compare directions, not "
    "values."
)


class Table(NamedTuple):
    """Cells as text; the first column names the row."""

    columns: list[str]
    rows: list[list[str]]


def tabulate_headline(report: Report) -> Table:
    """The answer: each difference with what its interval says."""
    return _tabulate(report, report.headline, has_reading=True)


def tabulate_measures(report: Report) -> Table:
    return _tabulate(report, report.rows, has_reading=False)


def tabulate_runs(report: Report) -> Table:
    rows = [
        [
            run.name,
            group.label,
            show_seed(run.seed),
            f"{run.last_step:,}",
            describe_phases(run.curves.get(NITP, {})),
        ]
        for group in report.groups
        for run in group.runs
    ]
    return Table(["run", "group", "seed", "last step", "NITP loss: least, then most"], rows)


def tabulate_options(report: Report) -> Table:
    """What the groups' configurations differ in."""
    options = list_differences(report.groups)
    columns = ["option", *(group.label for group in report.groups)]
    return Table(columns, [[name, *values] for name, values in options])


def _tabulate(report: Report, rows: Sequence[Row], *, has_reading: bool) -> Table:
    columns = ["", "taken at", *(group.label for group in report.groups)]
    for group in report.others:
        columns.append(f"{group.label} minus {report.baselines[group.label].label}")
        if has_reading:
            columns.append("reading")
    columns.append("paper's 9B, NTP to NITP")
    lines = []
    for row in rows:
        line = [row.measure.title, show_step(row)]
        line += [show_mean(row, group.label) for group in report.groups]
        for group in report.others:
            line.append(show_difference(row, group.label))
            if has_reading:
                line.append(read_difference(row.differences.get(group.label)))
        lines.append([*line, row.measure.paper])
    return Table(columns, lines)
