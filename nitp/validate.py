"""Validation: next-token cross entropy alone, with NITP beside it."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torchtitan.components.validate import Validator

from nitp.fsdp import forget_forward
from nitp.loss import NITPLoss
from nitp.measured import MeasuredLoss
from nitp.meter import GeometryMeter
from nitp.pairs import PAIR_WEIGHT, pair_mask, shard_pair_weight


class NITPValidator(Validator):
    """TorchTitan's validator, which also feeds the NITP loss its pairs.

    `validation_metrics/loss` stays cross entropy per valid label, so that runs with and without
    NITP compare. The NITP sums of the validation set stay in `loss.sums` for the metrics.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(Validator.Config):
        pass

    def post_dataloading_process(
        self,
        input_dict: dict[str, torch.Tensor],
        labels: torch.Tensor,
        model_parts: list[nn.Module],
    ) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
        if self._meter is not None:
            self._meter.make_room(len(labels))
        weight: dict[str, torch.Tensor] = {}
        if isinstance(self.loss_fn, NITPLoss):
            # Weight 1 per pair: validation knows its number of pairs only at the end.
            mask_BL, _ = pair_mask(input_dict, labels, self.loss_fn.nitp)
            weight = {PAIR_WEIGHT: mask_BL.float()}
        inputs, labels, model_inputs = super().post_dataloading_process(
            input_dict, labels, model_parts
        )
        weight = shard_pair_weight(weight, self.parallel_dims, self.parallelism)
        return inputs, labels, model_inputs | weight

    def validate(self, model_parts: list[nn.Module], step: int) -> None:
        if isinstance(self.loss_fn, NITPLoss):
            self.loss_fn.sums.zero_()
        if self._meter is not None:
            self._meter.zero_()
            self._meter.is_counting = True
        super().validate(model_parts, step)
        if not self.parallel_dims.pp_enabled:
            forget_forward(model_parts)

    @property
    def _meter(self) -> GeometryMeter | None:
        return self.loss_fn.meter if isinstance(self.loss_fn, MeasuredLoss) else None
