"""Paths in options: `~` and `$NAME` where they lead anywhere, and what is in the run directory.

Free of torch.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recipes.characters import find_fault
from recipes.data.config import HUB

PATHS = {
    "job.dump_folder",
    "job.config_file",
    "job.extends",
    "tokenizer.path",
    "data.sources.path",
    "validation.sets.path",
    "checkpoint.initial_load_path",
    "parallelism.pipeline_parallel_schedule_csv",
}
"""Options, `table.key`, that name files or folders which may be anywhere."""

CONFIG_FILE = "config.toml"
"""In the run directory: its resolved configuration."""

UNFINISHED_CONFIG_FILE = "config.unfinished"
"""In the run directory: the same while it is written."""

LOCK_FILE = "run.lock"
"""In the run directory: whose it is. Names that begin so are of its making and removal."""

ORIGIN_FILE = "origin.json"
"""In the run directory: what it started from, if not from scratch."""

_RESERVED = (
    CONFIG_FILE, UNFINISHED_CONFIG_FILE, "inputs.json", "inputs.json.unfinished",
    ORIGIN_FILE, "origin.unfinished", "structured_logs", "memory_budget_pareto",
)  # fmt: skip
"""In the run directory: what a run, or TorchTitan for it, writes there whatever the options are."""

RUN_PATHS = (
    "checkpoint.folder",
    "metrics.save_tb_folder",
    "export.folder",
    "comm.save_traces_folder",
    "profiler.save_traces_folder",
    "profiler.save_memory_snapshot_folder",
    "debug.save_config_file",
)
"""Options that name what a run writes in its directory."""

_VARIABLE = re.compile(r"\$(\w+)|\$\{([^}]*)\}")


_MAX_NAME_BYTES = 255


def expand_path(path: str) -> str:
    """The path with the home directory and environment variables in their places, also in a folder
    that follows `hf://`.

    Raises ValueError for a path that is empty or that no file system takes, one with a control
    character, for a variable that is not set or empty, a `$` that begins none, and a home directory
    of nobody.
    """
    if not path.strip() or "\0" in path:
        raise ValueError("is no path. Name a file or folder, or leave it out.")
    if "$" in _VARIABLE.sub("", path):
        raise ValueError("has a $ that begins no variable, as $NAME or ${NAME} do. Rename it.")
    for match in _VARIABLE.finditer(path):
        name = match[1] or match[2]
        if not os.environ.get(name):  # an empty one makes "$OUT/run" a folder of the root's
            state = "is empty" if name in os.environ else "is not set"
            raise ValueError(f"names the environment variable {name}, which {state}. Set it.")
    scheme = HUB if path.startswith(HUB) else ""
    expanded = os.path.expanduser(path.removeprefix(scheme))
    if expanded.startswith("~"):
        user = expanded.partition("/")[0]
        raise ValueError(f"begins with {user}, which is no home directory. Write ./{user}.")
    expanded = os.path.expandvars(expanded)
    if fault := find_fault(expanded):
        raise ValueError(f"{fault}. Rename it.")
    if any(len(os.fsencode(part)) > _MAX_NAME_BYTES for part in expanded.split("/")):
        raise ValueError(f"has a name of more than {_MAX_NAME_BYTES} bytes. Shorten it.")
    return scheme + expanded


def check_run_paths(values: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise ValueError unless what a run writes lies in its directory, which belongs to one job at
    a time, each under a name of its own, also where case makes no difference to names."""
    taken = {Path(name): (name, "the run's own") for name in _RESERVED}
    for option in RUN_PATHS:
        table, _, key = option.partition(".")
        value = values[table][key]
        if value is None:
            continue
        path = Path(value)
        if path.is_absolute() or os.pardir in path.parts or value.startswith("~") or "$" in value:
            raise ValueError(
                f"{option} ({value}) must be inside job.dump_folder, which belongs to one job at a "
                "time. Give a relative path, or move job.dump_folder."
            )
        if path == Path() or "\0" in value:
            raise ValueError(f"{option} ({value}) must be a name below job.dump_folder. Give one.")
        folded = Path(value.casefold())
        if folded.parts[0].startswith(LOCK_FILE):
            taken[Path(folded.parts[0])] = (path.parts[0], "the run's own")
        for other, (name, owner) in taken.items():
            if folded.is_relative_to(other) or other.is_relative_to(folded):
                raise ValueError(
                    f"{option} ({value}) must not be or hold {name}, which is {owner}, nor lie in "
                    "it. Choose another name."
                )
        taken[folded] = (value, f"{option}'s")


def anchor_paths(values: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The values with absolute paths, which name the same from any folder.

    Except those of data in the hub's layout: their documents are named by the path as it stands.
    """
    anchored = {table: dict(entries) for table, entries in values.items()}
    for option in (
        "job.dump_folder", "tokenizer.path", "checkpoint.initial_load_path",
        "parallelism.pipeline_parallel_schedule_csv",
    ):  # fmt: skip
        table, _, key = option.partition(".")
        anchored[table][key] = _anchor(anchored[table][key])
    for table, key in (("data", "sources"), ("validation", "sets")):
        anchored[table][key] = [
            {**entry, "path": _anchor(entry["path"])} for entry in anchored[table][key]
        ]
    return anchored


def _anchor(path: str | None) -> str | None:
    return path if not path or "://" in path else os.path.abspath(path)
