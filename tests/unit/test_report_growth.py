"""How the work of a report grows: in proportion to the points of its curves.

Counted, not timed: the steps of the curves count each comparison and each look-up of themselves.
"""

import random
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from recipes.report import report as report_module
from recipes.report.drawing import MAX_POINTS_AS_LINES, list_visible
from recipes.report.markdown import format_report
from recipes.report.measures import MEASURES
from recipes.report.panels import View
from recipes.report.runs import Run
from recipes.report.specs import list_specs
from recipes.report.statistics import average_windows
from recipes.report.style import choose_styles
from recipes.run.curves import Curve


class Step(int):
    """A step that counts what is done with it."""

    num_uses = 0

    def __lt__(self, other: Any) -> bool:
        Step.num_uses += 1
        return int(self) < int(other)

    def __gt__(self, other: Any) -> bool:
        Step.num_uses += 1
        return int(self) > int(other)

    def __eq__(self, other: object) -> bool:
        Step.num_uses += 1
        return int.__eq__(self, other) is True

    def __hash__(self) -> int:
        Step.num_uses += 1
        return int.__hash__(self)


def build_run(name: str, seed: int, *, nitp: bool, num_points: int, num_starts: int) -> Run:
    generator = random.Random(seed)
    steps = [Step(step) for step in range(1, num_points + 1)]
    curves = {m.tag: {step: 1.0 + generator.random() for step in steps} for m in MEASURES}
    starts = tuple(steps[:: max(num_points // num_starts, 1)])
    return Run(name, curves, starts, {"nitp.enable": nitp, "debug.seed": seed})


def count_uses(monkeypatch, num_points: int, num_starts: int) -> int:
    """Of a report of four runs, its Markdown and all its panels."""
    runs = [
        build_run(f"{arm}_{seed}", seed, nitp=arm == "nitp", num_points=num_points,
                  num_starts=num_starts)
        for arm in ("ntp", "nitp") for seed in (1, 2)
    ]  # fmt: skip
    Step.num_uses = 0
    monkeypatch.setattr(report_module, "read_runs", lambda folders: runs)
    report = report_module.build_report([Path(run.name) for run in runs])
    format_report(report)
    view = View(report.groups, report.baselines, choose_styles(report.groups))
    for panel in (panel for spec in list_specs(view) for panel in spec.panels):
        if panel.has_data(view):
            panel.draw(Figure().add_subplot(), view)
    return Step.num_uses


def test_the_work_grows_with_the_points(monkeypatch):
    few, many = (count_uses(monkeypatch, num, num_starts=1) for num in (500, 2000))
    assert few > 10_000  # it counts
    assert many < 6 * few  # 4, and the logarithm of a sort


def test_restarts_do_not_multiply_the_work(monkeypatch):
    once, often = (count_uses(monkeypatch, 1000, num_starts=num) for num in (1, 250))
    assert often < 1.5 * once


@pytest.mark.parametrize("num_points", [0, 1, 2, 9, 10, 11, 300])
def test_windows_are_those_of_a_naive_loop(num_points):
    generator = random.Random(num_points)
    steps = generator.sample(range(1, 4 * num_points + 2), num_points)
    curve = {step: generator.gauss(0.0, 1.0) for step in steps}
    expected = {}
    windows = [int(10 * np.log10(max(steps) / step)) for step in steps]
    for window in sorted({*windows}, reverse=True):
        members = sorted(s for s, w in zip(steps, windows, strict=True) if w == window)
        expected[members[-1]] = fmean(curve[s] for s in members)
    assert average_windows(curve) == expected


# -------------------------------------------------------------------- what is drawn of long curves


def build_long_curve() -> Curve:
    generator = np.random.default_rng(0)
    values = generator.normal(5.0, 1.0, 50_000)
    values[[7, 30_001, 49_000]] = 50.0, -40.0, np.nan
    return dict(enumerate(values.tolist(), start=1))


def test_all_points_of_a_short_curve_are_drawn():
    curve = {step: float(step) for step in range(MAX_POINTS_AS_LINES, 0, -1)}
    assert list_visible(curve) == sorted(curve)


def test_a_long_curve_keeps_its_ends_and_extremes_and_few_points():
    curve = build_long_curve()
    visible = list_visible(curve)
    assert visible == sorted({*visible}) and {*visible} <= curve.keys()
    assert (visible[0], visible[-1]) == (1, 50_000)
    assert {8, 30_002} <= {*visible} and len(visible) <= 4000


def test_a_long_curve_looks_as_all_its_points_do():
    """On an axis of 700 pixels: no pixel of a column is lost but for anti-aliasing."""
    curve = build_long_curve()
    images = []
    for steps in (sorted(curve), list_visible(curve)):
        figure = Figure((7, 3), dpi=100)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.plot(steps, [curve[step] for step in steps], color="black")
        axes.set(xscale="log", xlim=(1, 50_000), ylim=(-50, 60))
        axes.axis("off")
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        images.append(np.asarray(canvas.buffer_rgba())[..., 0] < 128)
    assert images[0].sum() > 5_000
    assert (images[0] != images[1]).mean() < 0.005
