"""The learning rate's schedule: TorchTitan's warm-up, plateau and decay, with one more decay."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch.optim.lr_scheduler import LambdaLR
from torchtitan.components.optimizer import LRSchedulersContainer
from torchtitan.config import derive

DecayType = Literal["linear", "sqrt", "cosine", "exponential"]


class RunLRSchedulers(LRSchedulersContainer):
    """LRSchedulersContainer whose decay may be exponential."""

    @dataclass(kw_only=True, slots=True)
    class Config(LRSchedulersContainer.Config):
        decay_type: DecayType = "linear"
        """How the learning rate falls over the decay steps, from its peak to min_lr_factor of it:
        - 'linear': in equal steps
        - 'sqrt': by 1 minus the square root of the progress
        - 'cosine': along half a period of a cosine
        - 'exponential': by equal factors, min_lr_factor ** progress; it must be greater than 0"""

        def build(self, *, optimizers: Any, training_steps: int) -> LRSchedulersContainer:
            if self.decay_type != "exponential":
                return LRSchedulersContainer.Config.build(
                    self, optimizers=optimizers, training_steps=training_steps
                )
            linear = derive(self, type(self), decay_type="linear", min_lr_factor=0.0)
            container = linear.build(optimizers=optimizers, training_steps=training_steps)
            for scheduler in container:
                assert isinstance(scheduler, LambdaLR)
                scheduler.lr_lambdas = [
                    _make_exponential(factor, self.warmup_steps, self.min_lr_factor)
                    for factor in scheduler.lr_lambdas
                ]
            return container


def _make_exponential(
    linear: Callable[[int], float], warmup_steps: int, final: float
) -> Callable[[int], float]:
    """The schedule with each factor f of its decay, which falls linearly from 1 to 0, replaced by
    final ** (1 - f). Its first step, which the optimizer has by now, is none of decay."""
    return lambda step: linear(step) if step < warmup_steps else final ** (1 - linear(step))
