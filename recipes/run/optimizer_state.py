"""What a checkpoint gives to the optimizers: moments and counts of steps, nothing else.

Rates, decays, betas and the implementation are the configuration's: those that are logged and
saved are those that are used, whatever the run was that saved the checkpoint.
"""

from typing import Any

from torch.distributed.checkpoint.stateful import Stateful
from torchtitan.components.optimizer import LRSchedulersContainer, OptimizersContainer

_HYPERPARAMETERS = "param_groups."
"""First part of their names in TorchTitan's flat state of the optimizers, per parameter."""


class OptimizerState(Stateful):
    """The optimizers without their hyperparameters, to be loaded."""

    def __init__(self, optimizers: OptimizersContainer) -> None:
        self._optimizers = optimizers

    def state_dict(self) -> dict[str, Any]:
        state = self._optimizers.state_dict()
        return {k: v for k, v in state.items() if not k.startswith(_HYPERPARAMETERS)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._optimizers.load_state_dict({**self._optimizers.state_dict(), **state_dict})


def apply_learning_rates(lr_schedulers: LRSchedulersContainer) -> None:
    """Set the rates that the schedule has at its present step, which it may have been loaded to."""
    for scheduler in lr_schedulers:
        rates = scheduler.get_last_lr()
        for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
