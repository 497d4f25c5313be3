"""comparison.md: the report without its figures."""

from statistics import fmean

from recipes.machine import describe_machine
from recipes.markdown import escape, escape_cell
from recipes.report.report import Report
from recipes.report.statistics import combine_curves
from recipes.report.tables import (
    PAPER,
    SPREAD,
    Table,
    tabulate_headline,
    tabulate_measures,
    tabulate_options,
    tabulate_runs,
)
from recipes.report.tags import NITP, NTP
from recipes.report.text import summarise

HEADING = "# Comparison of runs"
NUM_ROWS = 12


def format_report(report: Report) -> str:
    """All of it, with a newline at the end."""
    lines = [HEADING, ""]
    if report.others:
        lines += [f"* {escape(summarise(report, group))}" for group in report.others]
        lines += ["", *format_table(tabulate_headline(report)), ""]
    lines += ["## Runs", "", *format_table(tabulate_runs(report)), ""]
    lines += ["## Losses", "", *_format_losses(report), ""]
    lines += ["## Final figures", "", *format_table(tabulate_measures(report)), ""]
    lines += [SPREAD, "", PAPER, ""]
    options = tabulate_options(report)
    if options.rows:
        lines += ["## The groups' configurations differ in", "", *format_table(options), ""]
    if report.notes:
        lines += ["## Notes", "", *(f"* {escape(note)}" for note in report.notes), ""]
    lines += [f"This report was made on: {describe_machine()}.", ""]
    return "\n".join(lines)


def format_table(table: Table) -> list[str]:
    """Markdown, a line a row."""
    texts = [[escape_cell(escape(cell)) for cell in line] for line in (table.columns, *table.rows)]
    lines = [texts[0], ["---"] * len(table.columns), *texts[1:]]
    return [f"| {' | '.join(line)} |" for line in lines]


def _format_losses(report: Report) -> list[str]:
    """The mean losses of each group at up to `NUM_ROWS` steps that all runs logged."""
    steps = sorted(set.intersection(*(set(run.curves[NTP]) for run in report.runs)))
    if not steps:
        return ["The runs logged no step in common."]
    last = len(steps) - 1
    steps = sorted({steps[round(i * last / (NUM_ROWS - 1))] for i in range(NUM_ROWS)})
    columns, curves = ["step"], []
    for group in report.groups:
        for name, tag in (("L_NTP", NTP), ("L_NITP", NITP)):
            if of_runs := group.curves(tag):
                columns.append(f"{group.label}: {name}")
                curves.append(combine_curves(of_runs, fmean))
    rows = [
        [str(step), *(f"{curve[step]:.3f}" if step in curve else "-" for curve in curves)]
        for step in steps
    ]
    return format_table(Table(columns, rows))
