"""The projector before nitp.start_step: as it was initialised, whatever the optimizer does.

Its gradients are zero by then, as pair weights are; but a zero gradient still decays the weight,
counts a step of the moments and, by the order of its sums, moves the last bits of the norm that
gradients are clipped to. So clipping and optimizer find none.
"""

from collections.abc import Iterable

import torch
from torch import nn
from torchtitan.components.optimizer import OptimizersContainer


class HiddenGradients:
    """Takes the gradients of some parameters away, and puts the same tensors back: CUDA graphs
    write into the memory that they were captured with."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self._parameters = list(parameters)
        self._hidden: list[torch.Tensor | None] | None = None

    def hide(self) -> None:
        self._hidden = [parameter.grad for parameter in self._parameters]
        for parameter in self._parameters:
            parameter.grad = None

    def show(self) -> None:
        """Undo `hide`, if it was called."""
        if self._hidden is not None:
            for parameter, grad in zip(self._parameters, self._hidden, strict=True):
                parameter.grad = grad
            self._hidden = None


def init_moments(optimizers: OptimizersContainer) -> None:
    """Give every parameter the optimizer state of a first step, before any was taken.

    An optimizer makes a parameter's state when it first meets a gradient; a checkpoint that is
    saved before would lack it, and could not be resumed. Does nothing where there is state.
    """
    if any(optimizer.state for optimizer in optimizers):
        return
    optimizers.state_dict()  # makes what is not there, by a step without gradient and rate
    reset_moments(state for optimizer in optimizers for state in optimizer.state.values())


def reset_moments(states: Iterable[dict[str, object]]) -> None:
    """Back to before the first step: moments and step counts are 0."""
    for state in states:
        for value in state.values():
            if isinstance(value, torch.Tensor):
                value.zero_()
