"""Runs of one configuration, whatever their seeds: what is drawn in one colour."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from statistics import fmean
from typing import Any

from recipes.config.values import show_value
from recipes.report.runs import Run, Seed
from recipes.report.statistics import combine_curves
from recipes.run.curves import Curve

SAME_RUN = (
    "*.seed",
    # Its name, and where it writes.
    "job.description", "*.folder", "*_folder",
    "comm.save_traces_file_prefix", "debug.save_config_file",
)  # fmt: skip
"""Options, as patterns of `table.key`, in which runs of one group may differ."""

MAX_OPTIONS_IN_LABEL = 2
NOT_SET, IDLE = "not set", "-"


@dataclass(frozen=True, slots=True)
class Group:
    """Runs that differ only in what `SAME_RUN` names."""

    label: str
    runs: tuple[Run, ...]

    @property
    def is_nitp(self) -> bool:
        return self.runs[0].is_nitp

    def curves(self, tag: str) -> list[Curve]:
        """Of the runs that logged it."""
        return [run.curves[tag] for run in self.runs if tag in run.curves]

    @property
    def seeds(self) -> dict[Seed, list[Run]]:
        """The runs whose seed is known, by it."""
        found: dict[Seed, list[Run]] = {}
        for run in self.runs:
            if run.seed is not None:
                found.setdefault(run.seed, []).append(run)
        return found

    def by_seed(self, values: dict[str, float]) -> dict[Seed, float]:
        """Seed -> value, from run name -> value. Runs of one seed count once, by their mean."""
        found = {
            seed: [values[run.name] for run in runs if run.name in values]
            for seed, runs in self.seeds.items()
        }
        return {seed: fmean(of_seed) for seed, of_seed in found.items() if of_seed}

    def curves_by_seed(self, tag: str) -> dict[Seed, Curve]:
        """As `by_seed`, of curves."""
        found = {
            seed: [run.curves[tag] for run in runs if tag in run.curves]
            for seed, runs in self.seeds.items()
        }
        return {seed: combine_curves(curves, fmean) for seed, curves in found.items() if curves}


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """In the order of their first runs. A run without a configuration is a group of its own."""
    groups: list[list[Run]] = []
    for run in runs:
        home = next((group for group in groups if _is_same(group[0], run)), None)
        if home is None:
            groups.append([run])
        else:
            home.append(run)
    firsts = [group[0] for group in groups]
    return [Group(_label(group, firsts), tuple(group)) for group in groups]


def choose_baseline(groups: Sequence[Group]) -> Group:
    """What groups are compared with unless `match_baselines` finds a nearer one: the first group
    without NITP, else the first."""
    return next((group for group in groups if not group.is_nitp), groups[0])


def match_baselines(groups: Sequence[Group]) -> dict[str, Group]:
    """Label -> what that group is compared with; `choose_baseline`'s is absent.

    A group with NITP: of those without it the one whose configuration is nearest, by the number of
    options other than NITP's that differ. Any other: `choose_baseline`'s.
    """
    common = choose_baseline(groups)
    plain = [group for group in groups if not group.is_nitp]
    return {
        group.label: _nearest(group, plain) if group.is_nitp and plain else common
        for group in groups
        if group is not common
    }


def _nearest(group: Group, plain: Sequence[Group]) -> Group:
    """The first of the nearest; a group whose configuration is unknown is farthest."""

    def distance(other: Group) -> float:
        options, theirs = group.runs[0].options, other.runs[0].options
        if options is None or theirs is None:
            return math.inf
        names = _differing([options, theirs])
        return sum(not name.startswith("nitp.") for name in names)

    return min(plain, key=distance)


def list_differences(groups: Sequence[Group]) -> list[tuple[str, list[str]]]:
    """(option, its value in each group as a user writes it), of those that are not all the same."""
    shown = [group.runs[0].options for group in groups]
    options = _differing([values for values in shown if values is not None])
    return [(option, [_show(values, option) for values in shown]) for option in options]


def _show(options: dict[str, Any] | None, option: str) -> str:
    """Options of NITP are not in force in a run without it."""
    if options is None:
        return "unknown"
    if option not in options:
        return NOT_SET
    has_nitp, has_weight = options.get("nitp.enable"), options.get("nitp.weight") != 0
    in_force = {"nitp.enable": True, "nitp.weight": has_nitp}.get(option, has_nitp and has_weight)
    return show_value(options[option]) if in_force or not option.startswith("nitp.") else IDLE


def _differing(options: Sequence[dict[str, Any]]) -> list[str]:
    """Options that make another configuration, by name: whatever the order of the runs."""
    names = sorted({name for values in options for name in values})
    missing = object()
    return [
        name
        for name in names
        if any(values.get(name, missing) != options[0].get(name, missing) for values in options)
        and not any(fnmatchcase(name, pattern) for pattern in SAME_RUN)
    ]


def _is_same(first: Run, second: Run) -> bool:
    if first.options is None or second.options is None:
        return False
    return not _differing([first.options, second.options])


def _label(runs: Sequence[Run], firsts: Sequence[Run]) -> str:
    """`NTP` or `NITP` and what sets it apart from others of that kind; the first of its runs'
    names where that would be long. Whatever the order of the runs."""
    run = min(runs, key=lambda run: run.name)
    if run.options is None:
        return run.name
    kind = "NITP" if run.is_nitp else "NTP"
    alike = [first.options for first in firsts if first.options and first.is_nitp == run.is_nitp]
    options = _differing(alike)
    if len(options) > MAX_OPTIONS_IN_LABEL:
        return f"{kind} {run.name}"
    parts = [f"{option.removeprefix('nitp.')}={_show(run.options, option)}" for option in options]
    return " ".join([kind, *parts])
