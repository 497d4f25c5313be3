"""The sweep in one table: a row for each configuration, its figures and how far from the baseline.

The figures, their spread and their differences are the report's (recipes.report)."""

from collections.abc import Sequence

from recipes.markdown import escape
from recipes.report.markdown import format_table
from recipes.report.report import Report, build_report
from recipes.report.tables import SPREAD, Table
from recipes.report.text import show_difference, show_mean, show_step
from recipes.sweep.plan import Plan, Trial
from recipes.sweep.runner import failure_of


def format_sweep(plan: Plan) -> str:
    """Of the runs that are done; what is missing is named. Markdown, a newline at the end."""
    done = [trial for trial in plan.trials if trial.is_done]
    lines = ["# Sweep", ""]
    if done:
        report = build_report([trial.folder for trial in done])
        lines += [*format_table(tabulate(report)), "", SPREAD, ""]
        lines += [f"* {escape(note)}" for note in (*plan.notes, *report.notes)]
        lines += [""] * bool(plan.notes or report.notes)
    lines += _list_missing(plan, [trial for trial in plan.trials if not trial.is_done])
    return "\n".join(lines).rstrip() + "\n"


def tabulate(report: Report) -> Table:
    """The headline's measures; the first row is the baseline, if there is another. A column names
    the baselines of grids that have several."""
    rows, baselines = report.headline, report.baseline_labels
    columns = ["", "seeds", *(["baseline"] if len(baselines) > 1 else [])]
    for row in rows:
        columns.append(f"{row.measure.title}, {show_step(row)}")
        if report.others:
            columns.append(f"minus {'baseline' if len(baselines) > 1 else baselines[0]}")
    lines = []
    for group in report.groups:
        line = [group.label, str(len(group.runs))]
        if len(baselines) > 1:
            line.append(report.baselines[group.label].label if group in report.others else "-")
        for row in rows:
            line.append(show_mean(row, group.label))
            if report.others:
                line.append(show_difference(row, group.label))
        lines.append(line)
    return Table(columns, lines)


def _list_missing(plan: Plan, missing: Sequence[Trial]) -> list[str]:
    lines = []
    for trial in missing:
        failure = failure_of(plan, trial)
        if failure.exists():
            lines.append(f"* failed: {trial.name}, see {failure}")
        else:
            lines.append(f"* not done: {trial.name}")
    return lines
