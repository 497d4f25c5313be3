"""The figures that the report states of each run, and how groups differ in them."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median
from typing import Literal

from recipes.report import tags
from recipes.report.groups import Group
from recipes.report.runs import Run
from recipes.report.statistics import Estimate, compute_spread, estimate_mean
from recipes.run.curves import Curve

Reduction = Literal["last", "median", "peak"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """One number of a run."""

    name: str
    tag: str
    unit: str = ""
    num_decimals: int
    reduction: Reduction = "last"
    """last: of each run at the last step that it logged; median: over the logged steps, but for
    the first of each start, which also starts up; peak: the largest."""

    paper: str = "-"
    """NTP -> NITP of the paper's 9B model, at its end."""

    nitp_only: bool = False
    """Whether runs without NITP have no such number."""

    @property
    def title(self) -> str:
        return f"{self.name} ({self.unit})" if self.unit else self.name


NATS = "nats/token"
VALIDATION_LOSS = Measure(
    name="validation loss", tag=tags.VALIDATION, unit=NATS, num_decimals=4, paper="1.841 -> 1.840"
)
TRAINING_LOSS = Measure(name="training loss", tag=tags.NTP, unit=NATS, num_decimals=4)
VALIDATION_RANK = Measure(
    name="held-out effective rank", tag=tags.VALIDATION_RANK, num_decimals=1, paper="22 -> 60"
)
RANK = Measure(name="effective rank", tag=tags.RANK, num_decimals=1, paper="22 -> 60")
VALIDATION_COSINE = Measure(
    name="held-out average cosine",
    tag=tags.VALIDATION_COSINE,
    num_decimals=3,
    paper="0.37 -> 0.34",
)
COSINE = Measure(name="average cosine", tag=tags.COSINE, num_decimals=3, paper="0.37 -> 0.34")
STEP_TIME = Measure(
    name="median step time", tag=tags.STEP_TIME, unit="s", num_decimals=3, reduction="median",
    paper="+1.8 %",
)  # fmt: skip
MEMORY = Measure(name="peak memory", tag=tags.MEMORY, unit="GiB", num_decimals=2, reduction="peak")
MEASURES = (
    VALIDATION_LOSS,
    TRAINING_LOSS,
    RANK,
    VALIDATION_RANK,
    Measure(name="effective rank before the norm", tag=tags.PRE_RANK, num_decimals=1),
    COSINE,
    VALIDATION_COSINE,
    Measure(name="average cosine before the norm", tag=tags.PRE_COSINE, num_decimals=3),
    Measure(
        name="NITP loss", tag=tags.NITP, num_decimals=4, paper="0.025 to 0.04", nitp_only=True
    ),
    Measure(name="held-out NITP loss", tag=tags.VALIDATION_NITP, num_decimals=4, nitp_only=True),
    Measure(name="constant's NITP loss", tag=tags.CONSTANT, num_decimals=4, nitp_only=True),
    Measure(name="skill", tag=tags.SKILL, num_decimals=3, nitp_only=True),
    Measure(name="held-out skill", tag=tags.VALIDATION_SKILL, num_decimals=3, nitp_only=True),
    STEP_TIME,
    Measure(
        name="median throughput", tag=tags.THROUGHPUT, unit="tokens/s per device",
        num_decimals=0, reduction="median",
    ),
    Measure(
        name="median model FLOPs utilisation", tag=tags.MFU, unit="%", num_decimals=1,
        reduction="median",
    ),
    MEMORY,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Difference:
    """A group minus its baseline."""

    estimate: Estimate
    is_paired: bool
    """Whether the estimate is of differences between runs of the same seed; else it is the
    difference of the means, without an interval."""

    baseline: float
    """The baseline's mean over the runs that the estimate is of."""

    step: int | None = None
    """At which both sides are taken: the last that all of these runs logged. None for a median or
    a peak."""

    @property
    def percent(self) -> float | None:
        return 100 * self.estimate.mean / self.baseline if self.baseline else None


@dataclass(frozen=True, slots=True)
class Row:
    """A measure of every group."""

    measure: Measure
    values: dict[str, dict[str, float]]
    """Group label -> run name -> value; groups without one are absent."""

    differences: dict[str, Difference]
    """Group label -> its difference from its baseline; absent where either has no value."""

    steps: dict[str, dict[str, int]]
    """Group label -> run name -> step at which its value is taken; {} for a median or a peak."""

    @property
    def step(self) -> int | None:
        """At which all of it is taken; None where runs end at different steps, and for a median or
        a peak."""
        steps = {step for of_group in self.steps.values() for step in of_group.values()}
        steps |= {d.step for d in self.differences.values() if d.step is not None}
        return steps.pop() if len(steps) == 1 else None

    @property
    def compared_step(self) -> int | None:
        """The first at which a difference is taken, or without one the last of a value."""
        compared = [d.step for d in self.differences.values() if d.step is not None]
        ends = [step for of_group in self.steps.values() for step in of_group.values()]
        return min(compared, default=None) if compared else max(ends, default=None)

    def mean(self, label: str) -> float:
        return fmean(self.values[label].values())

    def spread(self, label: str) -> float | None:
        """Sample standard deviation of the runs."""
        return compute_spread([*self.values[label].values()])


def measure_groups(groups: Sequence[Group], baselines: Mapping[str, Group]) -> list[Row]:
    """A row for each measure that some run has. baselines: of `match_baselines`."""
    first, *others = MEASURES
    measures = [first, *_list_set_measures(groups), *others]
    rows = [_measure(measure, groups, baselines) for measure in measures]
    return [row for row in rows if row.values]


def _list_set_measures(groups: Sequence[Group]) -> Iterator[Measure]:
    """Of the held-out sets that some run has."""
    for name in tags.list_sets(tag for group in groups for run in group.runs for tag in run.curves):
        loss, bits = tags.SET_LOSS.format(name), tags.SET_BITS.format(name)
        yield Measure(name=f"validation loss, {name}", tag=loss, unit=NATS, num_decimals=4)
        yield Measure(name=f"bits per byte, {name}", tag=bits, num_decimals=4)


def choose_headline(rows: Sequence[Row]) -> list[Row]:
    """The answer in five lines: quality, geometry, cost.

    Held-out figures where they are as late as half of the steps, else a training batch's.
    """
    by_tag = {row.measure.tag: row for row in rows}
    last = by_tag[tags.NTP].compared_step if tags.NTP in by_tag else None
    wanted: tuple[tuple[str, ...], ...] = (
        (tags.VALIDATION, tags.NTP),
        (tags.VALIDATION_RANK, tags.RANK),
        (tags.VALIDATION_COSINE, tags.COSINE),
        (tags.STEP_TIME,),
        (tags.MEMORY,),
    )
    chosen = []
    for choice in wanted:
        found = [by_tag[tag] for tag in choice if tag in by_tag]
        late = [
            row
            for row in found
            if row.compared_step is None or last is None or row.compared_step >= last / 2
        ]
        chosen += (late or found)[:1]
    return chosen


def _measure(measure: Measure, groups: Sequence[Group], baselines: Mapping[str, Group]) -> Row:
    values: dict[str, dict[str, float]] = {}
    steps: dict[str, dict[str, int]] = {}
    for group in groups:
        runs = [run for run in group.runs if run.curves.get(measure.tag)]
        if measure.reduction == "last" and runs:
            steps[group.label] = {run.name: max(run.curves[measure.tag]) for run in runs}
            values[group.label] = {
                run.name: run.curves[measure.tag][steps[group.label][run.name]] for run in runs
            }
        elif known := _reduce(measure, runs):
            values[group.label] = known
    differences: dict[str, Difference] = {}
    for group in groups:
        baseline = baselines.get(group.label)
        if baseline is None or group.label not in values or baseline.label not in values:
            continue
        if measure.reduction == "last":
            difference = _compare_at_common_step(group, baseline, measure.tag)
        else:
            difference = compute_difference(
                group, values[group.label], baseline, values[baseline.label]
            )
        if difference is not None:
            differences[group.label] = difference
    return Row(measure, values, differences, steps)


def _compare_at_common_step(group: Group, baseline: Group, tag: str) -> Difference | None:
    """At the last step that all runs logged that the difference is of; None if there is none."""
    first, second = ([run for run in g.runs if run.curves.get(tag)] for g in (group, baseline))
    common = {run.seed for run in first} & {run.seed for run in second} - {None}
    if common:  # a run without a partner does not count, and takes nothing back to its end
        first, second = ([run for run in runs if run.seed in common] for runs in (first, second))
    step = max(set.intersection(*(set(r.curves[tag]) for r in (*first, *second))), default=None)
    if step is None:
        return None
    ours, theirs = ({run.name: run.curves[tag][step] for run in runs} for runs in (first, second))
    return replace(compute_difference(group, ours, baseline, theirs), step=step)


def _reduce(measure: Measure, runs: Sequence[Run]) -> dict[str, float]:
    """Run name -> median or peak, of those that have one."""
    found: dict[str, float] = {}
    for run in runs:
        curve, starts = run.curves[measure.tag], {*run.first_steps}
        if measure.reduction == "peak":
            found[run.name] = max(curve.values())
            continue
        running = [value for step, value in curve.items() if step not in starts]
        known = [value for value in running if math.isfinite(value)]  # mfu(%) has none on a CPU
        if known:
            found[run.name] = median(known)
    return found


def compute_difference(
    group: Group, values: dict[str, float], baseline: Group, baseline_values: dict[str, float]
) -> Difference:
    """Of run name -> value: seed by seed if both have one in common, else of the means."""
    ours, theirs = group.by_seed(values), baseline.by_seed(baseline_values)
    seeds = [seed for seed in ours if seed in theirs]
    if seeds:
        differences = [ours[seed] - theirs[seed] for seed in seeds]
        return Difference(estimate_mean(differences), True, fmean(theirs[seed] for seed in seeds))
    mean = fmean(baseline_values.values())
    num = min(len(values), len(baseline_values))
    return Difference(Estimate(fmean(values.values()) - mean, None, num), False, mean)


def pair_curves(group: Group, baseline: Group, tag: str) -> list[Curve]:
    """`group` minus `baseline`, for each seed that both have, at the steps that both logged."""
    ours, theirs = group.curves_by_seed(tag), baseline.curves_by_seed(tag)
    pairs = ((ours[seed], theirs[seed]) for seed in ours if seed in theirs)
    differences = [{s: a[s] - b[s] for s in sorted(a.keys() & b.keys())} for a, b in pairs]
    return [curve for curve in differences if curve]
