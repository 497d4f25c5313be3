"""Checkpoints of a run are saved, counted and kept; complete ones only."""

import queue
import threading
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_saver import AsyncSaveResponse
from torch.distributed.tensor import DTensor
from torchtitan.components.checkpointer.base import purge_thread
from torchtitan.components.checkpointer.dcp import AsyncMode
from torchtitan.config import derive
from torchtitan.tools.filesystem import rmtree

from recipes.run.checkpoint_folder import find_steps, find_superseded
from recipes.run.checkpoint_loading import LoadingCheckpointManager
from recipes.run.failed_save import describe_failed_save
from recipes.run.lock import check_owner


class RunCheckpointManager(LoadingCheckpointManager):
    """The manager for checkpoints of a run that may be cut off at any moment.

    Loads as LoadingCheckpointManager. Retention counts complete checkpoints only, after the save
    has ended. A leftover folder of the step to save is removed first, so that no old `.metadata`
    vouches for new files.

    Nothing is saved or removed for a job that has lost the lock of its run directory.

    Raises OSError, one line, for a checkpoint that cannot be saved.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(LoadingCheckpointManager.Config):
        pass

    def __init__(self, config: Config, **kwargs: Any) -> None:
        # Without TorchTitan's thread, which deletes without asking whose the folder is by then.
        super().__init__(derive(config, type(config), keep_latest_k=0), **kwargs)
        self.saves_any_step = False
        """Set: `save` saves all states at any step, unless it is saved already."""
        self._deleted: set[int] = set()
        self._step = -1  # the last that was saved, maybe not to its end yet
        self._run_folder: str = kwargs["base_folder"]
        if self.enable and config.keep_latest_k > 0:
            self.keep_latest_k = config.keep_latest_k
            self.purge_queue: queue.Queue[str | None] = queue.Queue()
            self.purge_thread = threading.Thread(
                target=purge_thread, args=(self.purge_queue, self._remove), daemon=True
            )
            self.purge_thread.start()

    def will_save(self, step: int, last_step: bool) -> bool:
        """Whether `save` writes a checkpoint at `step`."""
        return self.enable and self._should_save(step, last_step)

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
        except (CheckpointException, OSError) as error:
            raise self._save_error(error, curr_step) from None
        assert is_saved
        self._step = curr_step
        self.is_resumable = not (last_step and self.last_save_model_only)
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
        # Or what is left of a process that saves.
        except (CheckpointException, OSError, RuntimeError) as error:
            raise self._save_error(error, self._step) from None
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

    def _save_error(self, error: BaseException, step: int) -> OSError:
        """Leaves nothing of the failed save; the disk may be full."""
        path = self._path(step)
        text = describe_failed_save(error, path)  # before anything is removed
        if dist.get_rank() == 0:
            self._remove(path)
        return OSError(f"{text} The last complete checkpoint is {self.latest() or 'none'}.")

    def _remove(self, path: str | Path) -> None:
        """A folder that may not be there. Raises OSError if this job no longer owns its own."""
        check_owner(self._run_folder)
        rmtree(path)
