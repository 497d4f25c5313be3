"""What must hold of a trainer for NITP to train with it, whatever it replaces of TorchTitan's.

Each check refuses, by name and before the first update, a trainer that goes past a point where
NITP comes in.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from torchtitan.components.optimizer import OptimizersContainer
from torchtitan.trainer import Trainer

from nitp._torchtitan import skip_lm_head
from nitp.decoder import NITPDecoder
from nitp.loss import NITPLoss
from nitp.metrics import NITPMetricsProcessor
from nitp.pairs import Batch


def check_parts_are_used(trainer: Trainer) -> None:
    """Raise ValueError unless the trainer has built loss, metrics processor and model from its
    configuration."""
    for option, built, part in (
        ("loss", trainer.loss_fn, NITPLoss),
        ("metrics", trainer.metrics_processor, NITPMetricsProcessor),
        ("model_spec", trainer.model_parts[-1], NITPDecoder),
    ):
        if not isinstance(built, part):
            raise ValueError(
                f"{type(trainer).__name__} has {type(built).__name__} where its configuration has "
                f"{part.__name__} ({option}): NITP would not train. Build it from config.{option}."
            )


def hand_over_lm_head(loss: NITPLoss, decoder: Any) -> None:
    """Give the unembedding to the loss, which applies it chunk by chunk, where the trainer has not:
    TorchTitan's does so in `__init__`, which other trainers replace."""
    if loss.lm_head is None:
        loss.set_lm_head(decoder.lm_head)
        skip_lm_head(decoder)


def refuse_updates_without(loss: NITPLoss, optimizers: OptimizersContainer, trainer: str) -> None:
    """Raise ValueError at the next update if no batch with pair weights has come by the loss."""

    def check(*_: Any) -> None:
        for handle in handles:
            handle.remove()
        if not loss.is_reached:
            raise ValueError(
                f"{trainer} updates weights without a call of its loss_fn: NITP would not train. "
                "Its steps must call self.loss_fn with what the model returns."
            )

    handles = [optimizer.register_step_pre_hook(check) for optimizer in optimizers]


class StepBatches(Iterator[Batch]):
    """The batches of a step. Raises ValueError for a trainer that draws more or fewer, whose pairs
    would be counted wrongly."""

    def __init__(self, batches: Sequence[Batch], trainer: str) -> None:
        self._batches, self._trainer, self._num_drawn = batches, trainer, 0

    def __next__(self) -> Batch:
        self._num_drawn += 1
        if self._num_drawn > len(self._batches):
            raise self._error("more than")
        return self._batches[self._num_drawn - 1]

    def check_all_drawn(self) -> None:
        if self._num_drawn < len(self._batches):
            raise self._error(f"{self._num_drawn} of")

    def _error(self, what: str) -> ValueError:
        return ValueError(
            f"{self._trainer}.train_step draws {what} the {len(self._batches)} batches of a step "
            "(gradient_accumulation_steps * num_pipeline_parallel_microbatches): NITP counts the "
            "pairs of all of them before the first. Draw as many."
        )
