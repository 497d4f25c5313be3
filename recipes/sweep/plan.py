"""The runs of a sweep, each checked, as far as that goes without torch, before any starts."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

from recipes.config.rules import check_export, check_files, check_settings
from recipes.config.settings import Settings, resolve_settings
from recipes.config.values import show_value
from recipes.report.groups import SAME_RUN
from recipes.run.folder import check_run_folder, flatten
from recipes.sweep.grid import Overrides, name_run

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

    common: Sequence[str]
    """`--table.key value` for all runs."""

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
    arguments: list[str]
    """That make it."""


def build_plan(request: Request, *, needs_files: bool) -> Plan:
    """Raises ValueError for what cannot be a run, two values that make the same run, and a run
    directory that holds another configuration. needs_files: whether data and tokenizer must be on
    this machine."""
    base = _resolve([f"--job.config_file={request.config_file}", *request.common])
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
        for key, value in overrides:
            if key.startswith("job."):
                raise ValueError(f"--grid ({key}={value}) names no setting of the training.")
        shared = tuple(pair for pair in overrides if not pair[0].startswith("nitp."))
        if request.baseline is not None and shared not in shared_before:
            title = f"the baseline of {_show(shared)}" if shared else "the baseline"
            arguments = _argue(request.baseline, request.common, shared)
            yield _Arm(title, True, shared, [*arguments, "--nitp.enable=false"])
        shared_before.add(shared)
        arguments = _argue(request.config_file, request.common, overrides)
        yield _Arm(_show(overrides), False, overrides, arguments)


def _show(overrides: Overrides) -> str:
    return " ".join(f"{key}={value}" for key, value in overrides)


def _argue(file: str, common: Sequence[str], overrides: Overrides) -> list[str]:
    given = [f"--{key}={value}" for key, value in overrides]
    return [f"--job.config_file={file}", *common, *given]


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
    seeded = [f"--{option}={seed}" for option, seed in zip(SEEDS, seeds, strict=True)]
    arguments = [*arm.arguments, *seeded, f"--job.dump_folder={folder / name}"]
    settings = _resolve(arguments)
    steps = settings.values["training"]["steps"]
    last = folder / name / settings.values["checkpoint"]["folder"] / f"step-{steps}"
    return Trial(name, folder / name, tuple(arguments), last), settings


def _resolve(arguments: Sequence[str]) -> Settings:
    settings = resolve_settings(None, arguments)
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
