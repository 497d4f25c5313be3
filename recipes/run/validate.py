"""Validation whose data do not depend on the number of ranks."""

from dataclasses import dataclass
from typing import Any

from torchtitan.config import derive

from nitp.validate import NITPValidator


class RunValidator(NITPValidator):
    """NITPValidator, one step of which is a global batch, as in training."""

    @dataclass(kw_only=True, slots=True)
    class Config(NITPValidator.Config):
        global_batch_size: int
        """training.global_batch_size; -1: one batch of each rank."""

    def __init__(
        self, config: Config, *, dp_world_size: int, local_batch_size: int, **kwargs: Any
    ) -> None:
        if config.steps != -1 and config.global_batch_size != -1:
            batches_per_step = config.global_batch_size // (dp_world_size * local_batch_size)
            config = derive(config, type(self).Config, steps=config.steps * batches_per_step)
        super().__init__(
            config, dp_world_size=dp_world_size, local_batch_size=local_batch_size, **kwargs
        )
