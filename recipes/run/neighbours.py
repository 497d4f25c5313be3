"""Runs in directories inside each other: they are allowed, and share no folder. Free of torch."""

import os
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from recipes.config.paths import CONFIG_FILE, RUN_PATHS
from recipes.config.settings import SettingsError
from recipes.config.values import NONE
from recipes.run.lock import read_writes


def check_neighbours(folder: Path, writes: Sequence[str], option: str) -> None:
    """Raise SettingsError if the run in `folder`, which writes to the paths `writes` in it, shares
    a folder with another: with one inside it, or with one that it lies in.

    Another run is known by its run.lock or its config.toml. Looks at the folders above `folder`,
    and at those that `writes` names; called by the owner of `folder`, so that of two runs that
    start at once one sees the other.
    """
    own = Path(os.path.realpath(folder))
    for path in writes:
        for inner in (own / path, *(own / path).parents):
            if inner == own:
                break
            if _find_writes(inner) is not None:
                raise SettingsError(
                    f"{option} ({folder}) would be written to at {path}, in the directory of "
                    f"another run, {inner}. Choose another name, or another {option}."
                )
    for outer in own.parents:
        for path in _find_writes(outer) or ():
            taken = outer / path
            if own.is_relative_to(taken) or taken.is_relative_to(own):
                raise SettingsError(
                    f"{option} ({folder}) shares {taken} with the run in {outer}, which writes "
                    f"there. Name another {option}."
                )


def _find_writes(folder: Path) -> tuple[str, ...] | None:
    """What the run in `folder` writes there, as far as it is known; None if there is none."""
    owned, written = read_writes(folder), tuple(_read_config(folder / CONFIG_FILE))
    return None if owned is None and not written else (owned or ()) + written


def _read_config(path: Path) -> Iterator[str]:
    """The values of RUN_PATHS in a run's configuration; none of any other file."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return
    if _get(tables, "job.dump_folder") is not None:
        for option in RUN_PATHS:
            value = _get(tables, option)
            if value not in (None, NONE):
                yield value


def _get(tables: dict[str, Any], option: str) -> str | None:
    table, _, key = option.partition(".")
    values = tables.get(table)
    value = values.get(key) if isinstance(values, dict) else None
    return value if isinstance(value, str) else None
