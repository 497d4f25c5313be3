"""The run directory: whose it is, and what may change when a run continues in it. Free of torch."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from recipes.config.paths import CONFIG_FILE, RUN_PATHS, UNFINISHED_CONFIG_FILE, anchor_paths
from recipes.config.settings import Settings, SettingsError, resolve_settings, save_settings
from recipes.config.values import show_value
from recipes.data.config import HUB
from recipes.data.inputs import INPUTS_FILE
from recipes.run.neighbours import check_neighbours

MAY_CHANGE = (
    # What is reported, saved and measured.
    "job.*", "metrics.*", "geometry.*", "profiler.*", "validation.*", "export.*",
    "checkpoint.interval", "checkpoint.keep_latest_k", "checkpoint.async_mode",
    "checkpoint.load_step", "checkpoint.exclude_from_loading", "checkpoint.last_save_model_only",
    "checkpoint.enable_first_step_checkpoint", "checkpoint.export_dtype",
    "checkpoint.allow_pickle", "checkpoint.allow_projector_change",
    "debug.print_config", "debug.save_config_file", "debug.enable_structured_logging",
    # How long, and how failures are met.
    "training.steps", "data.num_epochs", "data.on_error", "training.on_nonfinite", "comm.*",
    "debug.detect_anomaly",
    # Where and how the same mathematics runs: rounding at most.
    "parallelism.*", "activation_checkpoint.*", "compile.*", "loss.num_chunks", "data.num_workers",
    "training.local_batch_size", "training.enable_cpu_offload", "training.disable_cuda_graphs",
    "training.gc_freq", "training.gc_debug",
    "debug.deterministic", "debug.deterministic_warn_only",
)  # fmt: skip
"""Options, as `table.key` or `table.*`, that a run may be continued with other values of. Any other
would make the directory hold two different runs. Where tokenizer and data files lie may change too,
if they are the same (inputs.py)."""


def check_run_folder(settings: Settings, option: str = "job.dump_folder") -> list[str]:
    """What differs from the run that the directory holds, one line each; [] for a new run.

    option: what the user named the directory by, for messages.

    Raises SettingsError if the directory cannot be written to, shares a folder with another run,
    its checkpoints are nobody knows whose, or a difference makes this another run than the one in
    it.
    """
    folder = Path(settings.values["job"]["dump_folder"])
    check_is_writable(settings.values["job"]["dump_folder"], option)
    _check_inner_folders(settings, folder, option)
    check_neighbours(folder, list_writes(settings), option)
    if not (folder / CONFIG_FILE).exists():
        checkpoint = settings.values["checkpoint"]
        if checkpoint["enable"] and any((folder / checkpoint["folder"]).glob("step-*")):
            raise SettingsError(
                f"{option} ({folder}) has checkpoints but no {CONFIG_FILE}, which would say "
                "whose they are. Name another, and one of them as checkpoint.initial_load_path."
            )
        return []
    try:
        saved = resolve_settings(str(folder / CONFIG_FILE), []).values
    except SettingsError as error:
        raise SettingsError(
            f"{option} ({folder}) holds a run whose configuration this version cannot read: "
            f"{error} Name another {option}."
        ) from None
    old, new = flatten(anchor_paths(saved)), flatten(anchor_paths(settings.values))
    differing = [key for key in old | new if old.get(key) != new.get(key)]
    changes = {key: f"{key} ({_show(old, key)} -> {_show(new, key)})" for key in sorted(differing)}
    moved = _find_moved(old, new) if (folder / INPUTS_FILE).exists() else set()
    refused = [c for key, c in changes.items() if not may_change(key) and key not in moved]
    if refused:
        raise SettingsError(
            f"{option} ({folder}) holds a run with another configuration: "
            f"{', '.join(refused)}. Restore these, or name another {option}."
        )
    if "training.steps" in changes and new["lr_scheduler.total_steps"] is None:
        changes["training.steps"] += ", and with it the learning rate's schedule"
    return list(changes.values())


def list_writes(settings: Settings) -> list[str]:
    """The paths in the run directory that RUN_PATHS name."""
    values = flatten(settings.values)
    return [values[option] for option in RUN_PATHS if values[option] is not None]


def _check_inner_folders(settings: Settings, folder: Path, option: str) -> None:
    """Raise SettingsError unless what the run writes will lie in `folder`, which it owns."""
    values = flatten(settings.values)
    for inner in RUN_PATHS:
        path = os.path.realpath(folder / (values[inner] or ""))
        if not Path(path).is_relative_to(os.path.realpath(folder)):
            raise SettingsError(
                f"{inner} ({values[inner]}) leads out of {option} ({folder}), to {path}: "
                f"another job may write there. Remove the link, or make {option} one."
            )
    for table in ("checkpoint", "export"):  # first written to after hours
        if values[f"{table}.enable"]:
            check_is_writable(str(folder / values[f"{table}.folder"]), f"{table}.folder")


def _find_moved(old: Mapping[str, Any], new: Mapping[str, Any]) -> set[str]:
    """The options that name the same inputs at another place, perhaps: whether they are the same,
    their content says (inputs.py)."""
    sources = [_drop_paths(values["data.sources"]) for values in (old, new)]
    return {"tokenizer.path"} | ({"data.sources"} if sources[0] == sources[1] else set())


def _drop_paths(sources: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Without the paths of files; a data set of the hub is what its path says."""
    return [
        {key: value for key, value in source.items() if key != "path" or value.startswith(HUB)}
        for source in sources
    ]


def may_change(option: str) -> bool:
    """Whether a run may be continued with another value of `table.key`."""
    return any(fnmatchcase(option, pattern) for pattern in MAY_CHANGE)


def save_config(settings: Settings) -> None:
    """Write the run's configuration. Readers see the old file or the new one, nothing between.

    It names this directory, and the files that the run reads, wherever it is read from.
    """
    settings = replace(settings, values=anchor_paths(settings.values))
    path = Path(settings.values["job"]["dump_folder"], CONFIG_FILE)
    unfinished = path.with_name(UNFINISHED_CONFIG_FILE)
    save_settings(settings, unfinished)
    unfinished.replace(path)


def flatten(values: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """`{"table.key": value}` of `Settings.values`."""
    return {f"{table}.{key}": v for table, entries in values.items() for key, v in entries.items()}


def _show(values: dict[str, Any], key: str) -> str:
    return show_value(values[key]) if key in values else "not set"


def check_is_writable(folder: str, option: str = "job.dump_folder") -> None:
    """Raise SettingsError unless `folder`, which `option` names, is a directory that can be written
    to, or created."""
    if "://" in folder:
        raise SettingsError(
            f"{option} ({folder}) must be a path of this machine. Mount the remote storage."
        )
    existing = Path(folder)
    while not existing.exists():
        if existing.is_symlink():
            raise SettingsError(
                f"{option} ({folder}) is no folder: {existing} is a link to "
                f"{existing.readlink()}, which does not exist. Create that, or name another."
            )
        existing = existing.parent
    if not existing.is_dir():
        raise SettingsError(
            f"{option} ({folder}) is no folder: {existing} is a file. Name another."
        )
    if not os.access(existing, os.W_OK | os.X_OK):
        raise SettingsError(
            f"{option} ({folder}) cannot be written to: {existing} is read-only for this "
            "user. Name another."
        )
