"""Mean, spread, and the 95 % interval of paired differences."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

from recipes.run.curves import Curve


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean and how well it is known."""

    mean: float
    half_width: float | None
    """Of the 95 % interval around the mean; None for fewer than two values."""

    num: int
    """Values that the mean is of."""

    @property
    def excludes_zero(self) -> bool:
        return self.half_width is not None and abs(self.mean) > self.half_width


def compute_spread(values: Sequence[float]) -> float | None:
    """Sample standard deviation, over n - 1; None for fewer than two values."""
    if len(values) < 2:
        return None
    mean = fmean(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))


def estimate_mean(values: Sequence[float]) -> Estimate:
    """The mean with Student's 95 % interval, t s / sqrt(n)."""
    spread, num = compute_spread(values), len(values)
    half = None if spread is None else student_t_95(num - 1) * spread / math.sqrt(num)
    return Estimate(fmean(values), half, num)


def average_windows(curve: Curve) -> Curve:
    """The mean over the steps of each window, at the window's last step.

    Ten windows for each factor of ten in steps, counted from the last: early steps stay as they
    are, late ones, of which there are many, are averaged.
    """
    windows: dict[int, list[int]] = {}
    last = max(curve, default=0)
    for step in sorted(curve):
        windows.setdefault(math.floor(10 * math.log10(last / step)), []).append(step)
    return {steps[-1]: fmean(curve[step] for step in steps) for steps in windows.values()}


def student_t_95(degrees_of_freedom: int) -> float:
    """t with 95 % of Student's distribution between -t and t."""
    low, high = 1.9, 13.0  # from above infinitely many degrees of freedom's, 1.96, to one's, 12.71
    while high - low > 1e-12 * low:
        middle = (low + high) / 2
        if _share_within(middle, degrees_of_freedom) < 0.95:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _share_within(t: float, dof: int) -> float:
    """P(|T| < t), the finite series of Abramowitz and Stegun 26.7.3 and 26.7.4."""
    theta = math.atan(t / math.sqrt(dof))
    sin, cos = math.sin(theta), math.cos(theta)
    term = cos if dof % 2 else 1.0
    total = 0.0
    for i in range(dof % 2 + 1, dof, 2):
        total += term
        term *= cos * cos * i / (i + 1)
    return 2 / math.pi * (theta + sin * total) if dof % 2 else sin * total


def combine_curves(
    curves: Sequence[Curve], combine: Callable[[Sequence[float]], float | None]
) -> Curve:
    """`combine` of the curves' values at each step that all of them have, and where it is not None.

    Where a curve ends the result ends: a mean over other runs than before would jump.
    """
    common = set.intersection(*(set(curve) for curve in curves)) if curves else set()
    values = {step: combine([curve[step] for curve in curves]) for step in sorted(common)}
    return {step: value for step, value in values.items() if value is not None}
