"""The runs of a sweep, each checked, as far as that goes without torch, before any starts."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

from recipes.config.arguments import format_overrides
from recipes.config.idle import depends_on
from recipes.config.rules import check_export, check_files, check_settings
from recipes.config.settings import Settings, resolve_settings
from recipes.config.values import show_value
from recipes.report.groups import SAME_RUN
from recipes.run.folder import check_run_folder, flatten
from recipes.sweep.grid import Overrides, name_run

_FILE, _NITP = "job.config_file", "nitp.enable"

_OF_THE_PROBLEM = ("model.*", "tokenizer.*", "data.*")
"""Options that a baseline shares with what is compared with it."""

SEEDS = ("debug.seed", "data.seed")
"""Of the initial weights and of the data's order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a sweep is asked for."""

    config_file: str
    grid: Sequence[Overrides]
    num_seeds: int
    baseline: str | None
    """The TOML file that, with NITP off and the point's other values, differences are from; None
    for no such runs."""

    common: Mapping[str, str]
    """`table.key` -> value, for all runs."""

    output: Path | None
    """The sweep's folder; None: beside job.dump_folder."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One run of a sweep."""

    name: str
    folder: Path
    """Run directory."""

    arguments: tuple[str, ...]
    """Of recipes.train."""

    last_checkpoint: Path

    @property
    def is_done(self) -> bool:
        """Whether the last step is saved: `.metadata` is what a save writes last."""
        return (self.last_checkpoint / ".metadata").is_file()


@dataclass(frozen=True, slots=True)
class Plan:
    """A sweep whose runs can start."""

    folder: Path
    option: str
    """What the user named the folder by."""

    trials: tuple[Trial, ...]
    """Seed by seed, in each the baselines before what is compared with them: what is interrupted
    has whole seeds to compare."""

    notes: tuple[str, ...]


class _Arm(NamedTuple):
    """Runs that differ in their seeds alone."""

    title: str
    """In messages."""

    is_baseline: bool
    overrides: Overrides
    given: dict[str, str]
    """`table.key` -> value, the configuration's file among them."""


def build_plan(request: Request, *, needs_files: bool) -> Plan:
    """Raises ValueError for what cannot be a run, two values that make the same run, and a run
    directory that holds another configuration. needs_files: whether data and tokenizer must be on
    this machine."""
    _check_grid(request)
    base = _resolve({_FILE: request.config_file, **request.common})
    _check_baseline(request, base)
    dump_folder = Path(base.values["job"]["dump_folder"])
    folder = request.output or dump_folder.with_name(f"{dump_folder.name}_sweep")
    option = "job.dump_folder" if request.output is None else "--output"
    notes: list[str] = []
    by_arm: list[list[Trial]] = []
    seen: dict[str, _Arm] = {}
    for arm in _list_arms(request):
        trials = []
        for i in range(request.num_seeds):
            trial, settings = _build_trial(folder, arm, base, i)
            if i == 0:
                same = seen.setdefault(_identify(settings), arm)
                if same.is_baseline and same is not arm:
                    if not arm.is_baseline:
                        notes.append(f"{arm.title} is {same.title}: it is not run twice.")
                    break
                if same is not arm:
                    raise ValueError(
                        f"{same.title} and {arm.title} make the same run. Remove one of them from "
                        "--grid."
                    )
            _check(settings, option, needs_files, notes)
            trials.append(trial)
        by_arm.append(trials)
    ordered = [trials[i] for i in range(request.num_seeds) for trials in by_arm if trials]
    return Plan(folder, option, tuple(ordered), tuple(dict.fromkeys(notes)))


def _list_arms(request: Request) -> Iterator[_Arm]:
    """Each point of the grid, after a baseline that differs from it by NITP alone: with another
    learning rate, say, the difference would be of both."""
    shared_before = set()
    for overrides in request.grid:
        shared = tuple(pair for pair in overrides if not depends_on(pair[0], _NITP))
        if request.baseline is not None and shared not in shared_before:
            title = f"the baseline of {_show(shared)}" if shared else "the baseline"
            common = {k: text for k, text in request.common.items() if not depends_on(k, _NITP)}
            given = {_FILE: request.baseline, **common, **dict(shared), _NITP: "false"}
            yield _Arm(title, True, shared, given)
        shared_before.add(shared)
        given = {_FILE: request.config_file, **request.common, **dict(overrides)}
        yield _Arm(_show(overrides), False, overrides, given)


def _check_grid(request: Request) -> None:
    """Raises ValueError for what would have no effect."""
    for key, value in request.grid[0]:
        if key.startswith("job."):
            raise ValueError(f"--grid ({key}={value}) names no setting of the training.")
        if key in request.common:
            raise ValueError(
                f"--{key} ({request.common[key]}) has no effect beside --grid {key}=..., which has "
                "the values of all runs. Leave one of them out."
            )
    if request.output is not None and "job.dump_folder" in request.common:
        raise ValueError(
            f"--job.dump_folder ({request.common['job.dump_folder']}) has no effect with --output "
            f"({request.output}), below which the runs are. Leave one of them out."
        )


def _check_baseline(request: Request, base: Settings) -> None:
    """Raises ValueError for a baseline of another model, or on other data."""
    if request.baseline is None:
        return
    given = {k: text for k, text in request.common.items() if not depends_on(k, _NITP)}
    own = flatten(_resolve({_FILE: request.baseline, **given, _NITP: "false"}).values)
    for option, value in flatten(base.values).items():
        is_same_problem = any(fnmatchcase(option, pattern) for pattern in _OF_THE_PROBLEM)
        if is_same_problem and option not in SEEDS and own.get(option) != value:
            raise ValueError(
                f"--baseline ({request.baseline}) has {option} = {show_value(own.get(option))}, "
                f"and {request.config_file} {show_value(value)}: differences would not be NITP's. "
                "Name another file, or none."
            )


def _show(overrides: Overrides) -> str:
    return " ".join(f"{key}={value}" for key, value in overrides)


def _build_trial(folder: Path, arm: _Arm, base: Settings, i: int) -> tuple[Trial, Settings]:
    """Its i-th seed, counted from the base configuration's."""
    seeds = []
    for option in SEEDS:
        first = flatten(base.values)[option]
        if type(first) is not int:
            raise ValueError(
                f"{option} ({show_value(first)}) must be a number: a sweep's seeds count from it."
            )
        seeds.append(first + i)
    name = name_run(arm.overrides, seeds[0], is_baseline=arm.is_baseline)
    own = {option: str(seed) for option, seed in zip(SEEDS, seeds, strict=True)}
    own["job.dump_folder"] = str(folder / name)
    given = {**arm.given, **own}
    settings = _resolve(given)
    steps = settings.values["training"]["steps"]
    last = folder / name / settings.values["checkpoint"]["folder"] / f"step-{steps}"
    return Trial(name, folder / name, tuple(format_overrides(given)), last), settings


def _resolve(given: Mapping[str, str]) -> Settings:
    settings = resolve_settings(None, format_overrides(given))
    check_settings(settings)
    return settings


def _identify(settings: Settings) -> str:
    """Equal for settings that the report takes for runs of one group."""
    return repr(
        {
            option: value
            for option, value in sorted(flatten(settings.values).items())
            if not any(fnmatchcase(option, pattern) for pattern in SAME_RUN)
        }
    )


def _check(settings: Settings, option: str, needs_files: bool, notes: list[str]) -> None:
    """Raises ValueError."""
    for table, key, value in (
        ("job", "dry_run", False),
        ("checkpoint", "enable", True),
        ("checkpoint", "load_only", False),
        ("checkpoint", "last_save_in_hf", False),
        ("metrics", "enable_tensorboard", True),
    ):
        given: Any = settings.values[table][key]
        if given is not value:
            raise ValueError(
                f"{table}.{key} ({show_value(given)}) must be {show_value(value)} in a sweep: it "
                "resumes by checkpoints and reads curves."
            )
    check_export(settings)
    check_run_folder(settings, option)
    try:
        check_files(settings)
    except ValueError as error:
        if needs_files:
            raise
        notes.append(f"not on this machine: {error}")
