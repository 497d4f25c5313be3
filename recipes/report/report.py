"""What a report says: groups, figures of each, differences, and what a reader must know."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from recipes.report import tags
from recipes.report.groups import Group, choose_baseline, group_runs, match_baselines
from recipes.report.measures import MEASURES, Row, choose_headline, measure_groups
from recipes.report.runs import Run, read_runs


@dataclass(frozen=True, slots=True)
class Report:
    """All but the figures."""

    groups: list[Group]
    """The first is compared with none."""

    baselines: Mapping[str, Group]
    """Label of each other group -> what it is compared with."""

    rows: list[Row]
    notes: list[str]

    @property
    def runs(self) -> list[Run]:
        return [run for group in self.groups for run in group.runs]

    @property
    def others(self) -> list[Group]:
        """The groups that are compared with another."""
        return [group for group in self.groups if group.label in self.baselines]

    @property
    def baseline_labels(self) -> list[str]:
        """Of the groups that others are compared with."""
        labels = {group.label for group in self.baselines.values()}
        return [group.label for group in self.groups if group.label in labels]

    @property
    def headline(self) -> list[Row]:
        return choose_headline(self.rows)


def build_report(folders: Sequence[Path]) -> Report:
    """Raises ValueError for a directory that holds no run."""
    found = group_runs(read_runs(folders))
    baseline = choose_baseline(found)
    groups = [baseline, *(group for group in found if group is not baseline)]
    baselines = match_baselines(groups)
    report = Report(groups, baselines, measure_groups(groups, baselines), [])
    report.notes.extend(_list_notes(report))
    return report


def _list_notes(report: Report) -> Iterator[str]:
    for run in report.runs:
        yield from (f"{run.name} {note}" for note in run.notes)
    yield from _note_steps(report)
    yield from _note_seeds(report)
    yield from _note_missing(report)


def _note_steps(report: Report) -> Iterator[str]:
    lengths = {run.name: run.last_step for run in report.runs}
    if len(set(lengths.values())) > 1:
        longest = max(lengths.values())
        ends = [f"{name} at {step:,}" for name, step in lengths.items() if step < longest]
        yield (
            f"The runs do not end at the same step: the longest at {longest:,}, {', '.join(ends)}. "
            "Each run's final figures are at its own end, differences at the last step that all "
            "runs logged that they are of, and the figure says which. Leave the short ones out to "
            "compare later steps. A group's mean and band end where its first run does."
        )
    taken = {
        name: step
        for row in report.rows
        if row.measure.tag == tags.VALIDATION
        for steps in row.steps.values()
        for name, step in steps.items()
    }
    early = [
        f"{name} at step {step:,} of {lengths[name]:,}"
        for name, step in taken.items()
        if step < lengths[name]
    ]
    if early:
        yield f"The last validation is before the end: {', '.join(early)}."


def _note_seeds(report: Report) -> Iterator[str]:
    for group in report.groups:
        for (seed, _), runs in group.seeds.items():
            if len(runs) > 1:
                names = ", ".join(run.name for run in runs)
                yield (
                    f"{group.label} has seed {seed} more than once ({names}): their mean counts "
                    "once where seeds are paired."
                )
    for group in report.others:
        baseline = report.baselines[group.label]
        alone = [
            run.name
            for first, second in ((group, baseline), (baseline, group))
            for run in first.runs
            if run.seed not in second.seeds
        ]
        if alone:
            yield (
                f"{group.label} and {baseline.label} do not pair in {', '.join(alone)}: "
                "the other has no run of that seed. Differences are of the pairs alone; where "
                "there are none, of the means, without an interval."
            )


def _note_missing(report: Report) -> Iterator[str]:
    present = {row.measure.tag for row in report.rows}
    has_nitp = any(run.is_nitp for run in report.runs)
    nowhere = [
        measure.name
        for measure in MEASURES
        if measure.tag not in present and (has_nitp or not measure.nitp_only)
    ]
    if nowhere:
        yield f"Not logged: {', '.join(nowhere)}."
    by_runs: dict[tuple[str, ...], list[str]] = {}
    for row in report.rows:
        known = {name for values in row.values.values() for name in values}
        expected = (run for run in report.runs if run.is_nitp or not row.measure.nitp_only)
        missing = tuple(run.name for run in expected if run.name not in known)
        if missing:
            by_runs.setdefault(missing, []).append(row.measure.name)
    for names, measures in by_runs.items():
        yield f"Without a number in {', '.join(names)}: {', '.join(measures)}."
    for group in report.others:
        baseline = report.baselines[group.label].label
        apart = [
            row.measure.name
            for row in report.rows
            if {group.label, baseline} <= row.values.keys() and group.label not in row.differences
        ]
        if apart:
            yield f"{group.label} and {baseline} logged no step in common: {', '.join(apart)}."
    if has_nitp and not all(run.is_nitp for run in report.runs):
        yield "Runs without NITP have no NITP loss, no constant's loss and no skill."
