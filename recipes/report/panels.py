"""What is drawn in a pair of axes: curves, differences of pairs, a profile over depth."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Protocol

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from recipes.report import tags
from recipes.report.drawing import draw_band, draw_line, draw_runs, mark_phases, set_scales
from recipes.report.groups import Group
from recipes.report.measures import pair_curves
from recipes.report.statistics import (
    average_windows,
    combine_curves,
    compute_spread,
    estimate_mean,
)
from recipes.report.style import TEXT, Style
from recipes.run.curves import Curve


@dataclass(frozen=True, slots=True)
class View:
    """What every panel of a report draws."""

    groups: Sequence[Group]
    baselines: Mapping[str, Group]
    """Label of a group -> what it is compared with."""

    styles: dict[str, Style]


class Panel(Protocol):
    """One pair of axes."""

    @property
    def label(self) -> str: ...

    def has_data(self, view: View) -> bool: ...

    def draw(self, axes: Axes, view: View) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Curves:
    """A tag over the steps: each run thin, the mean of a group thick in a band of one spread."""

    tag: str
    label: str
    """Of the vertical axis, with the unit."""

    reference: str | None = None
    """A tag to draw beside it, dotted: means only."""

    has_phases: bool = False
    """Whether to mark the phases of the NITP loss."""

    log_y: bool = False
    is_pace: bool = False
    """Whether it is a figure of speed: without the first logged step of each start, which also
    starts up, and averaged over windows of steps, as single steps differ by more than groups do."""

    def has_data(self, view: View) -> bool:
        return any(any(self._curves(group)) for group in view.groups)

    def draw(self, axes: Axes, view: View) -> None:
        means = []
        for group in view.groups:
            style = view.styles[group.label]
            curves = self._curves(group)
            draw_runs(axes, curves, style)
            mean = combine_curves(curves, fmean)
            means.append((mean, style))
            draw_line(axes, mean, style, label=group.label)
            draw_band(axes, mean, combine_curves(curves, compute_spread), style)
            if self.reference:
                reference = combine_curves(group.curves(self.reference), fmean)
                draw_line(axes, reference, style._replace(dashes=":"))
        if self.has_phases:
            mark_phases(axes, means)
        axes.set(xlabel="step", ylabel=self.label)
        set_scales(axes, log_x=True, log_y=self.log_y)

    def _curves(self, group: Group) -> list[Curve]:
        if not self.is_pace:
            return group.curves(self.tag)
        return [
            average_windows({s: v for s, v in run.curves[self.tag].items() if s not in starts})
            for run, starts in ((run, {*run.first_steps}) for run in group.runs)
            if self.tag in run.curves
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Differences:
    """A tag of each group minus its baseline's, seed by seed, averaged over windows of steps, and
    the 95 % interval of the mean over the seeds."""

    tag: str
    label: str

    def has_data(self, view: View) -> bool:
        return any(any(self._pairs(view, group)) for group in view.groups)

    def draw(self, axes: Axes, view: View) -> None:
        axes.axhline(0, color=TEXT, linewidth=0.8)
        for group in view.groups:
            style, pairs = view.styles[group.label], self._pairs(view, group)
            draw_runs(axes, pairs, style)
            mean = combine_curves(pairs, fmean)
            draw_line(axes, mean, style, label=group.label)
            half = combine_curves(pairs, lambda values: estimate_mean(values).half_width)
            draw_band(axes, mean, half, style)
        labels = {baseline.label for baseline in view.baselines.values()}
        baseline = labels.pop() if len(labels) == 1 else "its baseline"
        axes.set(xlabel="step", ylabel=f"{self.label}\nminus that of {baseline}")
        set_scales(axes, log_x=True, log_y=False)

    def _pairs(self, view: View, group: Group) -> list[Curve]:
        if group.label not in view.baselines:
            return []
        pairs = pair_curves(group, view.baselines[group.label], self.tag)
        common = set.intersection(*map(set, pairs)) if pairs else set()
        return [average_windows({step: pair[step] for step in common}) for pair in pairs if common]


@dataclass(frozen=True, slots=True, kw_only=True)
class Depth:
    """A measure after each layer, at the last step that all runs logged."""

    measure: str
    """Of the tags: effective_rank or average_cosine."""

    label: str

    def has_data(self, view: View) -> bool:
        return any(True for _ in self._profiles(view))

    def draw(self, axes: Axes, view: View) -> None:
        for group, profiles in self._profiles(view):
            style = view.styles[group.label]
            draw_runs(axes, profiles, style)
            mean = combine_curves(profiles, fmean)
            draw_line(axes, mean, style, label=group.label)
            draw_band(axes, mean, combine_curves(profiles, compute_spread), style)
            options = group.runs[0].options or {}
            if group.is_nitp and "nitp.target_layer" in options:
                layer = options["nitp.target_layer"]
                axes.axvline(layer, color=style.color, linewidth=0.8, alpha=0.6)
        axes.set(xlabel=f"after layer k, at step {self.step(view):,}", ylabel=self.label)
        set_scales(axes, log_x=False, log_y=False)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))

    def step(self, view: View) -> int | None:
        """At which it is drawn."""
        runs = [run.curves for group in view.groups for run in group.runs]
        steps = [{*run[tag]} for run in runs for tag in self._layers(run).values()]
        return max(set.intersection(*steps), default=None) if steps else None

    def _profiles(self, view: View) -> Iterator[tuple[Group, list[Curve]]]:
        """A group's profiles: layer -> value."""
        step = self.step(view)
        for group in view.groups:
            layers = [(self._layers(run.curves), run.curves) for run in group.runs]
            profiles = [
                {k: curves[tag][step] for k, tag in found.items()}
                for found, curves in layers
                if found and step is not None
            ]
            if profiles:
                yield group, profiles

    def _layers(self, curves: dict[str, Curve]) -> dict[int, str]:
        """Layer -> its tag."""
        pattern = tags.LAYER.format(r"(\d+)", self.measure)
        matches = ((re.fullmatch(pattern, tag), tag) for tag in curves)
        return {int(match[1]): tag for match, tag in matches if match}
