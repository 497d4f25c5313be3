"""The figures that the report states of each run, and how groups differ in them."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
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
    """last: at the last step that all compared runs logged; median: over the logged steps, but for
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

    @property
    def percent(self) -> float | None:
        return 100 * self.estimate.mean / self.baseline if self.baseline else None


@dataclass(frozen=True, slots=True)
class Row:
    """A measure of every group."""

    measure: Measure
    step: int | None
    """At which it is taken; None for a median or a peak."""

    values: dict[str, dict[str, float]]
    """Group label -> run name -> value; groups without one are absent."""

    differences: dict[str, Difference]
    """Group label -> its difference from its baseline; absent where either has no value."""

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
    last = by_tag[tags.NTP].step if tags.NTP in by_tag else None
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
        late = [row for row in found if not (row.step and last) or row.step >= last / 2]
        chosen += (late or found)[:1]
    return chosen


def last_common_step(runs: Sequence[Run], tag: str) -> int | None:
    """The last step at which every run that logs the tag logged it; None if there is none."""
    curves = [run.curves[tag] for run in runs if tag in run.curves]
    return max(set.intersection(*map(set, curves)), default=None) if curves else None


def _measure(measure: Measure, groups: Sequence[Group], baselines: Mapping[str, Group]) -> Row:
    runs = [run for group in groups for run in group.runs]
    step = last_common_step(runs, measure.tag) if measure.reduction == "last" else None
    reduce = _reductions(step)[measure.reduction]
    values: dict[str, dict[str, float]] = {}
    for group in groups:
        found = {run.name: reduce(run, measure.tag) for run in group.runs}
        known = {name: value for name, value in found.items() if value is not None}
        if known:
            values[group.label] = known
    differences: dict[str, Difference] = {}
    for group in groups:
        baseline = baselines.get(group.label)
        if baseline is not None and group.label in values and baseline.label in values:
            differences[group.label] = compute_difference(
                group, values[group.label], baseline, values[baseline.label]
            )
    return Row(measure, step, values, differences)


def _reductions(step: int | None) -> dict[Reduction, Callable[[Run, str], float | None]]:
    def last(run: Run, tag: str) -> float | None:
        return None if step is None else run.curves.get(tag, {}).get(step)

    def middle(run: Run, tag: str) -> float | None:
        curve = run.curves.get(tag, {})
        running = [value for s, value in curve.items() if s not in run.first_steps]
        known = [value for value in running if math.isfinite(value)]  # mfu(%) has none on a CPU
        return median(known) if known else None

    def peak(run: Run, tag: str) -> float | None:
        return max(run.curves.get(tag, {}).values(), default=None)

    return {"last": last, "median": middle, "peak": peak}


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
