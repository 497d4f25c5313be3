"""How curves, bands and scales look in a pair of axes."""

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from recipes.report.phases import find_phases
from recipes.report.style import GRID, Style
from recipes.run.curves import Curve

MAX_POINTS_AS_LINES = 2000
"""Of a curve. Longer ones are pixels in the page, which would be tens of megabytes otherwise."""

NUM_COLUMNS = 1000
"""Of a logarithmic axis, which is fewer pixels wide: points of one column are in one place."""

MAX_POINTS_WITH_MARKERS = 50
"""Of a curve: how far apart its points are is part of what it says."""


def draw_runs(axes: Axes, curves: Sequence[Curve], style: Style) -> None:
    """Thin, where there is a mean to see them against."""
    if len(curves) > 1:
        for curve in curves:
            draw_line(axes, curve, style, linewidth=0.7, alpha=0.45)


def draw_line(
    axes: Axes,
    curve: Curve,
    style: Style,
    linewidth: float = 1.8,
    alpha: float = 1.0,
    label: str = "",
) -> None:
    if not curve:
        return
    steps = list_visible(curve)
    axes.plot(
        steps,
        [curve[step] for step in steps],
        style.dashes,
        color=style.color,
        linewidth=linewidth,
        alpha=alpha,
        label=label,
        marker="o" if len(steps) <= MAX_POINTS_WITH_MARKERS and style.dashes != ":" else "",
        markersize=2 * linewidth,
        rasterized=len(curve) > MAX_POINTS_AS_LINES,
    )


def draw_band(axes: Axes, mean: Curve, half_width: Curve, style: Style) -> None:
    if not half_width:
        return
    low = {step: mean[step] - half for step, half in half_width.items()}
    high = {step: mean[step] + half for step, half in half_width.items()}
    steps = sorted({*list_visible(low), *list_visible(high)})
    axes.fill_between(
        steps,
        [low[step] for step in steps],
        [high[step] for step in steps],
        color=style.color,
        alpha=0.2,
        linewidth=0,
        rasterized=len(half_width) > MAX_POINTS_AS_LINES,
    )


def list_visible(curve: Curve) -> list[int]:
    """The steps, in order, whose points make the curve's picture; all of a short curve's.

    Of each column of a logarithmic axis the first, the lowest, the highest and the last point: a
    line through them covers what a line through all points does, and takes no longer to draw
    however many there are.
    """
    steps = sorted(curve)
    if len(steps) <= MAX_POINTS_AS_LINES:
        return steps
    columns: dict[int, list[int]] = {}
    scale = NUM_COLUMNS / math.log(steps[-1] / steps[0])
    for step in steps:
        columns.setdefault(math.floor(scale * math.log(step / steps[0])), []).append(step)
    visible = set[int]()
    for found in columns.values():
        finite = [step for step in found if math.isfinite(curve[step])] or found
        visible |= {
            found[0], min(finite, key=curve.__getitem__),
            max(finite, key=curve.__getitem__), found[-1],
        }  # fmt: skip
    return sorted(visible)


def mark_phases(axes: Axes, losses: Sequence[tuple[Curve, Style]]) -> None:
    """Lines between the phases of each NITP loss; their names where one loss has them."""
    found = [(curve, find_phases(curve), style) for curve, style in losses]
    known = [(curve, phases, style) for curve, phases, style in found if phases is not None]
    for _, phases, style in known:
        for step in phases:
            axes.axvline(step, color=style.color, linewidth=0.8, alpha=0.6)
    if len(known) == 1:
        curve, phases, _ = known[0]
        ends = [min(curve), *phases, max(curve)]
        for name, begin, end in zip(("I", "II", "III"), ends, ends[1:], strict=False):
            # The middle on a logarithmic axis.
            axes.text(
                (begin * end) ** 0.5, 1.02, name, ha="center",
                transform=axes.get_xaxis_transform(),
            )  # fmt: skip


def set_scales(axes: Axes, *, log_x: bool, log_y: bool) -> None:
    for is_log, axis, name in ((log_x, axes.xaxis, "x"), (log_y, axes.yaxis, "y")):
        axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
        if is_log:
            axes.set(**{f"{name}scale": "log"})
            low, high = axis.get_view_interval()
            subs = (1.0, 2.0, 5.0) if high / low < 200 else (1.0,)
            axis.set_major_locator(LogLocator(subs=subs))
            axis.set_minor_formatter(NullFormatter())
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    axes.grid(True, color=GRID, linewidth=0.6)
