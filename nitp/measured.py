"""TorchTitan's loss with a window: what it is given is shown to a meter first."""

from dataclasses import dataclass
from typing import Any

import torch
from torchtitan.components.loss import ChunkedLossWrapper

from nitp.meter import GeometryMeter


class MeasuredLoss(ChunkedLossWrapper):
    """TorchTitan's loss, which shows the states that it gets to a meter first, if it has one.

    Call, value and gradient are ChunkedLossWrapper's.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(ChunkedLossWrapper.Config):
        pass

    meter: GeometryMeter | None = None
    """The trainer has it after the loss. None: nothing is measured."""

    def __call__(
        self,
        pred: Any,
        labels: torch.Tensor,
        global_valid_tokens: torch.Tensor | None = None,
        **loss_inputs: Any,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        if self.meter is not None:
            self.meter.add_hidden(pred, labels)
        return super().__call__(pred, labels, global_valid_tokens, **loss_inputs)
