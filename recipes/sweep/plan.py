"""The runs of a sweep, each checked, as far as that goes without torch, before any starts."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

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
    """The TOML file that, with NITP off, differences are from; None for no such runs."""

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
    trials: tuple[Trial, ...]
    """Seed by seed, in each the baseline first: what is interrupted has whole seeds to compare."""

    notes: tuple[str, ...]


def build_plan(request: Request, *, needs_files: bool) -> Plan:
    """Raises ValueError for what cannot be a run, two values that make the same run, and a run
    directory that holds another configuration. needs_files: whether data and tokenizer must be on
    this machine."""
    base = _resolve([f"--job.config_file={request.config_file}", *request.common])
    dump_folder = Path(base.values["job"]["dump_folder"])
    folder = request.output or dump_folder.with_name(f"{dump_folder.name}_sweep")
    notes: list[str] = []
    by_arm: list[list[Trial]] = []
    seen: dict[str, str] = {}
    for name, overrides, arguments in _list_arms(request):
        trials = []
        for i in range(request.num_seeds):
            trial, settings = _build_trial(folder, overrides, arguments, base, i)
            if i == 0:
                same = seen.setdefault(_identify(settings), name)
                if same == BASELINE and name != BASELINE:
                    notes.append(f"{name} is the baseline: it is not run twice.")
                    break
                if same != name:
                    raise ValueError(
                        f"{same} and {name} make the same run. Remove one of them from --grid."
                    )
            _check(settings, needs_files, notes)
            trials.append(trial)
        by_arm.append(trials)
    ordered = [trials[i] for i in range(request.num_seeds) for trials in by_arm if trials]
    return Plan(folder, tuple(ordered), tuple(dict.fromkeys(notes)))


BASELINE = "the baseline"


def _list_arms(request: Request) -> Iterator[tuple[str, Overrides, list[str]]]:
    """(its name in messages, what it is called by, the arguments that make it)."""
    if request.baseline is not None:
        file = f"--job.config_file={request.baseline}"
        yield BASELINE, (), [file, *request.common, "--nitp.enable=false"]
    for overrides in request.grid:
        given = [f"--{key}={value}" for key, value in overrides]
        for key, value in overrides:
            if key.startswith("job."):
                raise ValueError(f"--grid ({key}={value}) names no setting of the training.")
        yield (
            " ".join(f"{key}={value}" for key, value in overrides),
            overrides,
            [f"--job.config_file={request.config_file}", *request.common, *given],
        )


def _build_trial(
    folder: Path, overrides: Overrides, arguments: list[str], base: Settings, i: int
) -> tuple[Trial, Settings]:
    """Its i-th seed, counted from the base configuration's."""
    seeds = []
    for option in SEEDS:
        first = flatten(base.values)[option]
        if type(first) is not int:
            raise ValueError(
                f"{option} ({show_value(first)}) must be a number: a sweep's seeds count from it."
            )
        seeds.append(first + i)
    name = name_run(overrides, seeds[0])
    seeded = [f"--{option}={seed}" for option, seed in zip(SEEDS, seeds, strict=True)]
    arguments = [*arguments, *seeded, f"--job.dump_folder={folder / name}"]
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


def _check(settings: Settings, needs_files: bool, notes: list[str]) -> None:
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
    check_run_folder(settings)
    try:
        check_files(settings)
    except ValueError as error:
        if needs_files:
            raise
        notes.append(f"not on this machine: {error}")
