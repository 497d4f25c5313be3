"""A run as the report sees it: its curves, its configuration, and what is odd about it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipes.config.toml_file import read_toml
from recipes.report.tags import NITP, NTP, TOTAL
from recipes.run.curves import Curve, first_step, merge_starts, read_starts
from recipes.run.folder import CONFIG_FILE, flatten

Seed = tuple[Any, Any]
"""debug.seed, of the initial weights, and data.seed, of the data's order."""


@dataclass(frozen=True, slots=True)
class Run:
    """What a run directory holds."""

    name: str
    """The shortest end of its path that no other run of the report has."""

    curves: dict[str, Curve]
    """TensorBoard tag -> step -> value. Has `NTP`."""

    first_steps: tuple[int, ...]
    """The first step that each start logged: more than one for a run that was resumed."""

    options: dict[str, Any] | None
    """`table.key` -> value of config.toml; None without that file."""

    notes: tuple[str, ...] = ()
    """What a reader of its figures must know, a sentence each."""

    @property
    def last_step(self) -> int:
        return max(self.curves[NTP])

    @property
    def seed(self) -> Seed | None:
        """None if it is not known."""
        if self.options is None or self.options.get("debug.seed") in (None, "none"):
            return None
        return self.options["debug.seed"], self.options.get("data.seed")

    @property
    def is_nitp(self) -> bool:
        """Whether NITP trains it."""
        if self.options is not None and "nitp.enable" in self.options:
            return self.options["nitp.enable"] and self.options.get("nitp.weight") != 0
        return NITP in self.curves


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Raises ValueError for a directory that holds no run, and for one that is given twice."""
    paths = [folder.resolve() for folder in folders]
    for i, path in enumerate(paths):
        if path in paths[:i]:
            raise ValueError(f"{folders[i]} is given twice. Name each run directory once.")
    return [
        _read_run(folder, name)
        for folder, name in zip(folders, _shortest_names(paths), strict=True)
    ]


def _shortest_names(paths: Sequence[Path]) -> list[str]:
    names = []
    for path in paths:
        others = [other for other in paths if other != path]
        for num_parts in range(1, len(path.parts) + 1):
            end = path.parts[-num_parts:]
            if all(other.parts[-num_parts:] != end for other in others):
                break
        names.append("/".join(end))
    return names


def _read_run(folder: Path, name: str) -> Run:
    options = _read_options(folder / CONFIG_FILE)
    tb_folder = (options or {}).get("metrics.save_tb_folder", "tb")
    starts = read_starts(folder, tb_folder)
    curves = merge_starts(starts)
    notes = []
    if NTP not in curves and TOTAL in curves and NITP not in curves:
        curves[NTP] = curves[TOTAL]
        notes.append(f"has no {NTP}; without NITP its {TOTAL} is the same, and stands for it.")
    if NTP not in curves:
        raise ValueError(
            f"{folder} has no TensorBoard curves. Give a run directory (job.dump_folder)."
        )
    first_steps = tuple(map(first_step, starts))
    if len(starts) > 1:
        begins = ", ".join(map(str, first_steps))
        notes.append(
            f"was started {len(starts)} times, first logging steps {begins}. From there on each "
            "start's values take the place of those before."
        )
    if options is None:
        notes.append(f"has no {CONFIG_FILE}: it is a group of its own and pairs with no other run.")
    run = Run(name, curves, first_steps, options)
    planned, log_freq = ((options or {}).get(key) for key in ("training.steps", "metrics.log_freq"))
    if planned is not None and run.last_step <= planned - (log_freq or 1):
        notes.append(f"ends at step {run.last_step:,} of {planned:,}.")
    return Run(name, curves, first_steps, options, tuple(notes))


def _read_options(path: Path) -> dict[str, Any] | None:
    """As they were saved: also what another version of this project wrote."""
    try:
        return flatten(read_toml(path))
    except FileNotFoundError:
        return None
    except (ValueError, AttributeError) as error:
        raise ValueError(
            f"{path} is no run's configuration: {error}. Restore it, or move it away to compare "
            "the curves alone."
        ) from None
