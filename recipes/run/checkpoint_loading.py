"""What a run loads when it starts: the newest complete checkpoint of its own, or its first one."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.stateful import Stateful
from torchtitan.components.checkpointer.base import LR_SCHEDULER, OPTIMIZER, TRAIN_STATE
from torchtitan.tools.logging import logger
from torchtitan.tools.utils import device_module, device_type

from nitp.checkpoint import NITPCheckpointManager
from recipes.run.checkpoint_folder import (
    RANDOM_STATE,
    find_fault,
    find_steps,
    has_training_state,
)
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


class LoadingCheckpointManager(NITPCheckpointManager):
    """NITPCheckpointManager that loads the newest complete checkpoint of a run.

    Warns of newer ones that are cut off. The random state returns on the same number of ranks;
    hyperparameters are the configuration's, whatever is loaded.

    Raises ValueError, one line, for a checkpoint that cannot be loaded.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(NITPCheckpointManager.Config):
        pass

    exclude_from_loading: list[str]

    def __init__(self, config: Config, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        self.is_resumable = True
        """Whether `latest` has the state of the training, not the model alone."""
        self.origin: Origin | None = None
        """On rank 0: what the run starts from, if `load` has not found a checkpoint of its own."""
        self._complete: set[int] = set()
        if self.enable:
            self.states[RANDOM_STATE] = RandomState()

    def latest(self) -> Path | None:
        """The newest complete checkpoint that this run has loaded, found or saved."""
        return self._path(max(self._complete)) if self._complete else None

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

    def _path(self, step: int) -> Path:
        return Path(self._create_checkpoint_id(step))
