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
from torchtitan.components.checkpointer.base import (
    LR_SCHEDULER,
    OPTIMIZER,
    TRAIN_STATE,
    purge_thread,
)
from torchtitan.components.checkpointer.dcp import AsyncMode
from torchtitan.config import derive
from torchtitan.tools.filesystem import rmtree
from torchtitan.tools.logging import logger
from torchtitan.tools.utils import device_module, device_type

from nitp.checkpoint import NITPCheckpointManager
from recipes.run.checkpoint_folder import (
    RANDOM_STATE,
    find_fault,
    find_steps,
    find_superseded,
    has_training_state,
)
from recipes.run.failed_save import describe_failed_save
from recipes.run.lock import check_owner
from recipes.run.optimizer_state import OptimizerState, apply_learning_rates
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

    exclude_from_loading: list[str]

    def __init__(self, config: Config, **kwargs: Any) -> None:
        # Without TorchTitan's thread, which deletes without asking whose the folder is by then.
        super().__init__(derive(config, type(config), keep_latest_k=0), **kwargs)
        self.saves_any_step = False
        """Set: `save` saves all states at any step, unless it is saved already."""
        self.is_resumable = True
        """Whether `latest` has the state of the training, not the model alone."""
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
        self._complete, self.is_resumable = self._agree_on_complete(step)
        if self._complete and self.initial_load_path and self.exclude_from_loading:
            logger.info(
                f"checkpoint.exclude_from_loading ({', '.join(self.exclude_from_loading)}) is for "
                f"{self.initial_load_path} only: {self.latest()} is loaded whole."
            )
            self.exclude_from_loading = []
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
        if not self.is_resumable:
            self._skip_to_end(max(self._complete))
            return False
        if not self._complete and self.initial_load_path and not self.initial_load_in_hf:
            self._check_initial(Path(self.initial_load_path))
        if not self._complete and self.initial_load_path and dist.get_rank() == 0:
            self.origin = read_origin(Path(self.initial_load_path), is_hf=self.initial_load_in_hf)
        is_loaded = super()._load(step)
        if is_loaded:
            apply_learning_rates(self.states[LR_SCHEDULER])
        return is_loaded

    def _states_to_load(self, model_only: bool) -> dict[str, Any]:
        states = super()._states_to_load(model_only)
        if OPTIMIZER in states:
            states[OPTIMIZER] = OptimizerState(states[OPTIMIZER])
        return states

    def _agree_on_complete(self, step: int) -> tuple[set[int], bool]:
        """The complete checkpoints and whether the newest can be resumed, as rank 0 sees them: all
        ranks must load the same."""
        complete: list[int] = []
        is_resumable = True
        if dist.get_rank() == 0:
            for found, path in reversed(find_steps(Path(self.folder)).items()):
                fault = find_fault(path)
                if fault is None:
                    is_resumable = has_training_state(path) if not complete else is_resumable
                    complete.append(found)
                elif step == -1 and not complete:
                    logger.warning(f"{path} is passed over: {fault}.")
        agreed: list[Any] = [complete, is_resumable]
        dist.broadcast_object_list(agreed)
        return set(agreed[0]), agreed[1]

    def _skip_to_end(self, step: int) -> None:
        """Take the step of a checkpoint of the model alone, the last of a run, for done.

        Raises ValueError if there is more to train: optimizer and position in the data are gone.
        """
        trainer: Any = self.states[TRAIN_STATE]
        num_steps = trainer.config.training.steps
        if step < num_steps:
            raise ValueError(
                f"training.steps ({num_steps}) must be at most {step}: {self._path(step)} holds "
                "the model alone (checkpoint.last_save_model_only), so its run cannot be trained "
                "on. Start another from it: another job.dump_folder, checkpoint.initial_load_path "
                f"= {self._path(step)} and checkpoint.allow_pickle = true. Or move it away to go "
                "on from the checkpoint before it."
            )
        trainer.step = step

    def _check_initial(self, path: Path) -> None:
        fault = find_fault(path)
        if fault is not None:
            raise ValueError(
                f"checkpoint.initial_load_path ({path}) is not a complete DCP checkpoint: {fault}."
            )
        if not self.initial_load_model_only and not has_training_state(path):
            raise ValueError(
                f"checkpoint.initial_load_path ({path}) holds the model alone. Set "
                "checkpoint.initial_load_model_only = true."
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
        except (CheckpointException, OSError) as error:
            raise self._save_error(error, curr_step) from error
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

    def _path(self, step: int) -> Path:
        return Path(self._create_checkpoint_id(step))
