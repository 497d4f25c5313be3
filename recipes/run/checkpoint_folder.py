"""Checkpoint folders on disk: which are there, which were cut off, and which are superseded.

A folder `step-N` is complete if its `.metadata` (DCP writes it last) can be read and every file
that it refers to has its full length.

`.metadata`, and the values of a checkpoint that are not tensors, are pickles by DCP's format: to
open a checkpoint is to run what its author put there.
"""

import re
from collections.abc import Set
from pathlib import Path

from torch.distributed.checkpoint import FileSystemReader
from torchtitan.components.checkpointer.base import TRAIN_STATE

RANDOM_STATE = "random_state"
"""First part of the names of the random generators' states."""


def find_steps(folder: Path) -> dict[int, Path]:
    """The folders `step-N`, complete or not, by N ascending."""
    if not folder.is_dir():
        return {}
    found = ((re.fullmatch(r"step-(\d+)", path.name), path) for path in folder.iterdir())
    return dict(sorted((int(match[1]), path) for match, path in found if match))


def find_fault(checkpoint: Path) -> str | None:
    """Why the checkpoint is not complete, in a few words; None if it is."""
    if not (checkpoint / ".metadata").is_file():
        return "it has no .metadata, so its save did not end"
    try:
        entries = FileSystemReader(checkpoint).read_metadata().storage_data.values()
    except Exception as error:  # a damaged pickle raises whatever its bytes happen to mean
        return f"its .metadata cannot be read ({type(error).__name__})"
    lengths: dict[str, int] = {}
    for entry in entries:
        end = entry.offset + entry.length
        lengths[entry.relative_path] = max(end, lengths.get(entry.relative_path, 0))
    for name, length in lengths.items():
        file = checkpoint / name
        size = file.stat().st_size if file.is_file() else 0
        if size < length:
            return f"{name} has {size} of {length} bytes"
    return None


def has_training_state(checkpoint: Path) -> bool:
    """Whether a complete checkpoint is of a whole training, not of the model alone."""
    names = FileSystemReader(checkpoint).read_metadata().state_dict_metadata
    return any(name.startswith(f"{TRAIN_STATE}.") for name in names)


def find_superseded(found: Set[int], complete: Set[int], keep: int) -> list[int]:
    """The steps to delete, ascending: complete ones but the newest `keep`, and cut-off ones older
    than the newest complete. keep 0: none."""
    if keep == 0 or not complete:
        return []
    kept = sorted(complete)[-keep:]
    oldest, newest = kept[0], kept[-1]
    return sorted(step for step in found if step < (oldest if step in complete else newest))
