"""Checkpoints of a run: only complete ones are loaded, counted and kept."""

import queue
import threading
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_saver import AsyncSaveResponse
from torch.distributed.checkpoint.stateful import Stateful
from torch.distributed.tensor import DTensor
from torchtitan.components.checkpointer.base import TRAIN_STATE, purge_thread
from torchtitan.components.checkpointer.dcp import AsyncMode
from torchtitan.config import derive
from torchtitan.tools.filesystem import rmtree
from torchtitan.tools.logging import logger
from torchtitan.tools.utils import device_module, device_type

from nitp.checkpoint import NITPCheckpointManager
from recipes.run.checkpoint_folder import RANDOM_STATE, find_fault, find_steps, find_superseded
from recipes.run.lock import check_owner
from recipes.run.origin import Origin, read_origin


class RandomState(Stateful):
    """The random generators of this rank, the CPU's and its device's."""

    def __init__(self) -> None:
        self.key = f"rank_{dist.get_rank()}"

    def state_dict(self) -> dict[str, Any]:
        states = {"cpu": torch.get_rng_state()}
        if device_type != "cpu":
            states["device"] = device_module.get_rng_state()
        return {self.key: states}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        states = state_dict[self.key]
        torch.set_rng_state(states["cpu"])
        if device_type != "cpu":
            device_module.set_rng_state(states["device"])


class RunCheckpointManager(NITPCheckpointManager):
    """The manager for checkpoints of a run that may be cut off at any moment.

    Loading takes the newest complete checkpoint and warns of newer ones that are cut off. Retention
    counts complete ones only, after the save has ended. A leftover folder of the step to save is
    removed first, so that no old `.metadata` vouches for new files. Also saves the random state,
    which returns on the same number of ranks.

    Nothing is saved or removed for a job that has lost the lock of its run directory.

    Raises ValueError, one line, for a checkpoint that cannot be loaded; OSError for one that cannot
    be saved.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(NITPCheckpointManager.Config):
        pass

    def __init__(self, config: Config, **kwargs: Any) -> None:
        # Without TorchTitan's thread, which deletes without asking whose the folder is by then.
        super().__init__(derive(config, type(config), keep_latest_k=0), **kwargs)
        self.saves_any_step = False
        """Set: `save` saves all states at any step, unless it is saved already."""
        self._complete: set[int] = set()
        self._deleted: set[int] = set()
        self._step = -1  # the last that was saved, maybe not to its end yet
        self.origin: Origin | None = None
        """On rank 0: what the run starts from, if `load` has not found a checkpoint of its own."""
        self._run_folder: str = kwargs["base_folder"]
        if self.enable and config.keep_latest_k > 0:
            self.keep_latest_k = config.keep_latest_k
            self.purge_queue: queue.Queue[str | None] = queue.Queue()
            self.purge_thread = threading.Thread(
                target=purge_thread, args=(self.purge_queue, self._remove), daemon=True
            )
            self.purge_thread.start()
        if self.enable:
            self.states[RANDOM_STATE] = RandomState()

    def latest(self) -> Path | None:
        """The newest complete checkpoint that this run has loaded, found or saved."""
        return self._path(max(self._complete)) if self._complete else None

    def will_save(self, step: int, last_step: bool) -> bool:
        """Whether `save` writes a checkpoint at `step`."""
        return self.enable and self._should_save(step, last_step)

    # ------------------------------------------------------------------------ loading

    def _load(self, step: int = -1) -> bool:
        self._complete = self._agree_on_complete(step)
        if self._complete and TRAIN_STATE in self.exclude_from_loading:
            raise ValueError(
                f'checkpoint.exclude_from_loading ("{TRAIN_STATE}") would count the steps from 0 '
                f"beside the checkpoints of {self.folder}. Name another job.dump_folder and "
                f"checkpoint.initial_load_path = {self.latest()}."
            )
        if step != -1 and step not in self._complete:
            have = ", ".join(map(str, sorted(self._complete))) or "none"
            raise ValueError(
                f"checkpoint.load_step ({step}) must be a complete checkpoint of {self.folder}, "
                f"which has {have}."
            )
        if step != -1 and step < max(self._complete):
            raise ValueError(
                f"checkpoint.load_step ({step}) must be the last checkpoint of {self.folder} "
                f"({max(self._complete)}): after an interruption the run would continue from that "
                "one. Move the later ones away, or branch off with another job.dump_folder and "
                f"checkpoint.initial_load_path = {self._path(step)}."
            )
        if not self._complete and self.initial_load_path and not self.initial_load_in_hf:
            self._check_initial(Path(self.initial_load_path))
        if not self._complete and self.initial_load_path and dist.get_rank() == 0:
            self.origin = read_origin(Path(self.initial_load_path), is_hf=self.initial_load_in_hf)
        return super()._load(step)

    def _agree_on_complete(self, step: int) -> set[int]:
        """The complete checkpoints, as rank 0 sees them: all ranks must load the same."""
        complete: list[list[int]] = [[]]
        if dist.get_rank() == 0:
            for found, path in reversed(find_steps(Path(self.folder)).items()):
                fault = find_fault(path)
                if fault is None:
                    complete[0].append(found)
                elif step == -1 and not complete[0]:
                    logger.warning(f"{path} is passed over: {fault}.")
        dist.broadcast_object_list(complete)
        return set(complete[0])

    def _check_initial(self, path: Path) -> None:
        fault = find_fault(path)
        if fault is not None:
            raise ValueError(
                f"checkpoint.initial_load_path ({path}) is not a complete DCP checkpoint: {fault}."
            )

    def _find_load_step(self, folder: str = "") -> int:
        assert not folder
        return max(self._complete, default=-1)

    def dcp_load(
        self,
        state_dict: dict[str, Any],
        checkpoint_id: str,
        from_hf: bool,
        from_quantized: bool,
    ) -> None:
        if RANDOM_STATE in state_dict:
            saved = FileSystemReader(checkpoint_id).read_metadata().state_dict_metadata
            num_ranks = sum(k.startswith(RANDOM_STATE) and k.endswith(".cpu") for k in saved)
            if num_ranks != dist.get_world_size():
                logger.info(f"Random state not restored: it is that of {num_ranks} ranks.")
                del state_dict[RANDOM_STATE]
        super().dcp_load(state_dict, checkpoint_id, from_hf, from_quantized)

    # ------------------------------------------------------------------------- saving

    def _should_save(self, curr_step: int, last_step: bool = False) -> bool:
        if curr_step == self._step:
            return False
        is_asked = self.saves_any_step and not self.load_only
        return is_asked or super()._should_save(curr_step, last_step)

    def _save(self, curr_step: int, last_step: bool = False) -> bool:
        if not self._should_save(curr_step, last_step):
            return False
        self.maybe_wait_for_saving()
        # No other rank writes a file before rank 0 has taken part in DCP's plan.
        if dist.get_rank() == 0:
            self._remove(self._path(curr_step))
        try:
            is_saved = super()._save(curr_step, last_step)
        except CheckpointException as error:
            raise self._save_error(error, curr_step) from error
        assert is_saved
        self._step = curr_step
        if self.save_future is None:
            self._note_saved()
        return True

    def dcp_save(
        self, state_dict: dict[str, Any], checkpoint_id: str, async_mode: AsyncMode, **kwargs: Any
    ) -> Future | AsyncSaveResponse | None:
        if async_mode != AsyncMode.DISABLED:
            # DCP's stager takes a DTensor that begins inside a storage (the K and V of a fused QKV
            # weight) for a plain tensor, and fails.
            state_dict = {
                name: value.clone()
                if isinstance(value, DTensor) and value.storage_offset()
                else value
                for name, value in state_dict.items()
            }
        return super().dcp_save(state_dict, checkpoint_id, async_mode, **kwargs)

    def _wait_for_saving(self) -> None:
        try:
            super()._wait_for_saving()
        except CheckpointException as error:
            raise self._save_error(error, self._step) from error
        self._note_saved()

    def _note_saved(self) -> None:
        self._complete.add(self._step)
        if not self._should_purge():
            return
        folders = find_steps(Path(self.folder))
        found = folders.keys() - self._deleted  # the thread that deletes may be behind
        for step in find_superseded(found, self._complete & found, self.keep_latest_k):
            self.purge_queue.put(str(folders[step]))
            self._deleted.add(step)

    def _purge_stale_checkpoints(self) -> None:
        """Not where TorchTitan calls it, when an asynchronous save has just begun: _note_saved."""

    def _save_error(self, error: CheckpointException, step: int) -> OSError:
        """Leaves nothing of the failed save; the disk may be full."""
        path = self._path(step)
        if dist.get_rank() == 0:
            self._remove(path)
        return OSError(
            f"{path} cannot be saved: {_first(error)}. The last complete checkpoint is "
            f"{self.latest() or 'none'}."
        )

    def _remove(self, path: str | Path) -> None:
        """A folder that may not be there. Raises OSError if this job no longer owns its own."""
        check_owner(self._run_folder)
        rmtree(path)

    def _path(self, step: int) -> Path:
        return Path(self._create_checkpoint_id(step))


def _first(error: CheckpointException) -> str:
    """The error of the first rank that failed, of which DCP makes a page."""
    (exception, _) = next(iter(error.failures.values()))
    return f"{exception}".split("\n")[0]
