"""Reads a DCP checkpoint tensor by tensor: one process, no process group, no model.

Every key is the model's, or training-only by name, or an error.
"""

import functools
import logging
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torchtitan.components.checkpointer.base import (
    DATALOADER,
    LR_SCHEDULER,
    OPTIMIZER,
    TRAIN_STATE,
)

from nitp.projector import PROJECTOR_NAME
from recipes.run.checkpoint_folder import RANDOM_STATE, find_fault, find_steps

logger = logging.getLogger(__name__)

TRAINING_ONLY = (PROJECTOR_NAME, OPTIMIZER, LR_SCHEDULER, DATALOADER, TRAIN_STATE, RANDOM_STATE)
"""First parts of the names that exported weights never have."""


@dataclass(kw_only=True, slots=True, frozen=True)
class Dropped:
    """What of a checkpoint does not reach the exported weights, under one first part of names."""

    name: str
    num_tensors: int
    num_params: int


class _Reader(FileSystemReader):
    """Reads the metadata once, not once per tensor: with many ranks it is tens of megabytes."""

    @functools.cached_property
    def metadata(self) -> Metadata:
        return super().read_metadata()

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return self.metadata


class Checkpoint:
    """One step's folder. Raises OSError, one line, for what cannot be read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._reader = _Reader(folder)
        try:
            self._entries = self._reader.metadata.state_dict_metadata
        except Exception as error:  # the metadata is a pickle: a damaged one raises anything
            raise OSError(f"{folder}: the metadata cannot be read ({error!r}).") from error

    @property
    def step(self) -> int:
        return int(self.folder.name.removeprefix("step-"))

    def check_model(self, shapes: Mapping[str, torch.Size]) -> None:
        """Raise ValueError unless the checkpoint has exactly the tensors `shapes`, whole, and
        beside them only what is training-only by name."""
        for name in self._entries:
            if name not in shapes and name.split(".")[0] not in TRAINING_ONLY:
                raise ValueError(
                    f"{self.folder}: {name} is neither a parameter of the model nor training-only "
                    f"({', '.join(TRAINING_ONLY)}). Does the run's config.toml belong to it?"
                )
        for name, shape in shapes.items():
            entry = self._entries.get(name)
            if not isinstance(entry, TensorStorageMetadata):
                raise ValueError(f"{self.folder}: the model's {name} is missing.")
            if entry.size != shape:
                raise ValueError(
                    f"{self.folder}: {name} has shape {list(entry.size)}, the model "
                    f"{list(shape)}. Does the run's config.toml belong to it?"
                )
            # DCP leaves what no chunk covers as it is in memory.
            if sum(prod(chunk.sizes) for chunk in entry.chunks) != prod(shape):
                raise ValueError(f"{self.folder}: parts of {name} are missing.")

    def dropped(self) -> list[Dropped]:
        """The training-only part, by first part of the names."""
        num_tensors: Counter[str] = Counter()
        num_params: Counter[str] = Counter()
        for name, entry in self._entries.items():
            first = name.split(".")[0]
            if first in TRAINING_ONLY and isinstance(entry, TensorStorageMetadata):
                num_tensors[first] += 1
                num_params[first] += prod(entry.size)
        return [
            Dropped(name=name, num_tensors=num_tensors[name], num_params=num_params[name])
            for name in TRAINING_ONLY
            if name in num_tensors
        ]

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def load(self, name: str) -> torch.Tensor:
        """The whole tensor, on the CPU, in the checkpoint's dtype. Raises OSError."""
        entry = self._entries[name]
        assert isinstance(entry, TensorStorageMetadata)
        state = {name: torch.empty(entry.size, dtype=entry.properties.dtype)}
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*single process.*")
                dcp.load(state, storage_reader=self._reader, no_dist=True)
        except CheckpointException as error:
            (cause, *_) = error.failures.values()
            raise OSError(f"{self.folder}: {name} cannot be read ({cause[0]!r}).") from error
        return state[name]


def find_checkpoint(folder: Path, step: int | None) -> Checkpoint:
    """The checkpoint of `step`, or the latest complete one for None, among folders `step-N`.

    Warns of newer ones that were cut off. Raises ValueError naming the steps there are, and what is
    wrong with those that are not complete.
    """
    found = find_steps(folder)
    faults = {n: fault for n, path in found.items() if (fault := find_fault(path)) is not None}
    complete = [n for n in found if n not in faults]
    if step is None and complete:
        step = complete[-1]
        for newer in (n for n in faults if n > step):
            logger.warning(f"{found[newer]} is passed over: {faults[newer]}.")
    if step in complete:
        return Checkpoint(found[step])
    wanted = "complete checkpoint" if step is None else f"complete checkpoint of step {step}"
    reasons = "; ".join(f"step-{n}: {fault}" for n, fault in faults.items())
    reason = f" ({reasons})" if reasons else ""
    have = f" It has {', '.join(map(str, complete))}." if complete else ""
    raise ValueError(f"{folder} has no {wanted}{reason}.{have}")
