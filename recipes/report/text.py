"""Numbers as the page and comparison.md print them."""

import math

from recipes.report.groups import Group
from recipes.report.measures import Difference, Measure, Row
from recipes.report.report import Report

NONE = "-"
UNCLEAR = "no clear difference"


def show_mean(row: Row, label: str) -> str:
    """`5.2361 +- 0.0123`: mean and sample standard deviation of the group's runs; where runs end at
    different steps, with the group's."""
    if label not in row.values:
        return NONE
    digits, spread = row.measure.num_decimals, row.spread(label)
    text = f"{row.mean(label):,.{digits}f}"
    if spread is not None:
        text += f" +- {spread:,.{digits}f}"
    steps = sorted({*row.steps.get(label, {}).values()})
    if not steps or row.step is not None:
        return text
    if len(steps) == 1:
        return f"{text} (at step {steps[0]:,})"
    return f"{text} (at steps {steps[0]:,} to {steps[-1]:,})"


def show_difference(row: Row, label: str) -> str:
    """`+0.0652 (+0.0411 to +0.0893)`: mean difference and its 95 % interval; a time, a speed or
    memory also in percent of the baseline's. With its step where runs end at different ones."""
    if label not in row.differences:
        return NONE
    difference, digits = row.differences[label], row.measure.num_decimals
    estimate = difference.estimate
    text = f"{estimate.mean:+,.{digits}f}"
    if is_relative(row.measure) and difference.percent is not None:
        text += f", {difference.percent:+.1f} %"
    if estimate.half_width is not None:
        low, high = estimate.mean - estimate.half_width, estimate.mean + estimate.half_width
        text += f" ({low:+,.{digits}f} to {high:+,.{digits}f})"
    return text + _show_own_step(row, difference, " (at step {:,})")


def _show_own_step(row: Row, difference: Difference, form: str) -> str:
    """Nothing where the whole row is taken at one step."""
    is_own = row.step is None and difference.step is not None
    return form.format(difference.step) if is_own else ""


def read_difference(difference: Difference | None) -> str:
    """What the interval says."""
    if difference is None:
        return NONE
    estimate = difference.estimate
    if not math.isfinite(estimate.mean):
        return "not finite in a run"
    if estimate.half_width is None:
        return "one pair: no interval" if difference.is_paired else "no pairs: no interval"
    if estimate.excludes_zero:
        return "higher" if estimate.mean > 0 else "lower"
    return UNCLEAR


def is_relative(measure: Measure) -> bool:
    """Whether a difference of it is best read in percent."""
    return measure.reduction != "last"


def show_step(row: Row) -> str:
    """When the row's numbers are taken."""
    if row.step is not None:
        return f"step {row.step:,}"
    return "each run's end" if row.measure.reduction == "last" else row.measure.reduction


def summarise(report: Report, group: Group) -> str:
    """One sentence: the headline's differences of the group from its baseline."""
    parts, reservations, num_pairs = [], dict[str, None](), 0
    for row in report.headline:
        difference = row.differences.get(group.label)
        if difference is None:
            continue
        reading = read_difference(difference)
        num_pairs = max(num_pairs, difference.estimate.num if difference.is_paired else 0)
        amount = f"{difference.estimate.mean:+,.{row.measure.num_decimals}f}"
        if is_relative(row.measure) and difference.percent is not None:
            amount = f"{difference.percent:+.1f} %"
        elif row.measure.unit:
            amount += f" {row.measure.unit}"
        amount += _show_own_step(row, difference, " at step {:,}")
        if reading in ("higher", "lower"):
            parts.append(f"{reading} {row.measure.name} ({amount})")
        elif reading == UNCLEAR:
            parts.append(f"{reading} in {row.measure.name} ({amount})")
        else:
            parts.append(f"{row.measure.name} {amount}")
            reservations[reading] = None
    pairs = f", {num_pairs} pairs of runs" if num_pairs > 1 else ""
    baseline = report.baselines[group.label].label
    text = f"{group.label} against {baseline}{pairs}: {'; '.join(parts) or 'no figure'}"
    return f"{text} ({', '.join(reservations)})." if reservations else f"{text}."


def show_seed(run_seed: tuple[object, object] | None) -> str:
    return "unknown" if run_seed is None else str(run_seed[0])
