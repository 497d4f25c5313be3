"""The trainer seam: pair weights into each step, NITP's figures out of it."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from torchtitan.distributed.utils import dist_sum_tensor
from torchtitan.tools.logging import logger
from torchtitan.trainer import Trainer

from nitp.compose import check_composition
from nitp.config import GeometryConfig, NITPConfig
from nitp.loss import NITPLoss
from nitp.measured import MeasuredLoss
from nitp.meter import GeometryMeter
from nitp.metrics import NITPMetricsProcessor, StepContext
from nitp.pairs import PAIR_WEIGHT, Batch, pair_mask, shard_pair_weight, take_pair_weight
from nitp.parts import fit_parts
from nitp.projector import PROJECTOR_NAME
from nitp.seams import (
    StepBatches,
    check_parts_are_used,
    hand_over_lm_head,
    refuse_updates_without,
)
from nitp.sequence import SequenceShards
from nitp.start import HiddenGradients, init_moments


class NITPTrainer(Trainer):
    """TorchTitan's trainer for a configuration made by `with_nitp`, and NITP's part of any other
    trainer: each method here runs before that one's own, which may replace TorchTitan's."""

    @dataclass(kw_only=True, slots=True)
    class Config(Trainer.Config):
        nitp: NITPConfig = field(default_factory=lambda: NITPConfig(enable=False))
        geometry: GeometryConfig = field(default_factory=GeometryConfig)

    config: Config

    def __init__(self, config: Config) -> None:
        config = self.fit(config)
        check_composition(config, config.nitp, config.geometry)
        super().__init__(config)
        if config.nitp.is_active and config.loss.is_given_whole:
            logger.info(
                f"NITP joins the loss in {config.loss.num_chunks} chunks of the sequence, "
                "TorchTitan's default: equal to rounding, with less memory."
            )
        loss = None
        decoder, dims = self.model_parts[-1], self.parallel_dims
        shards = SequenceShards.from_config(dims, config.parallelism, config.training.seq_len)
        if config.nitp.is_active:
            check_parts_are_used(self)
            loss = self.loss_fn
            assert isinstance(loss, NITPLoss)
            loss.attach(
                decoder,
                config.nitp,
                shards,
                self.device,
                is_pipelined=dims.pp_enabled,
                trainer_name=type(self).__name__,
            )
            if self._has_loss:
                hand_over_lm_head(loss, decoder)
        self._meter = self._attach_meter(decoder, shards)
        if isinstance(self.metrics_processor, NITPMetricsProcessor):
            max_norm = config.training.max_norm
            self.metrics_processor.attach(loss=loss, max_norm=max_norm, meter=self._meter)
        projector = getattr(decoder, PROJECTOR_NAME) if loss is not None else None
        self._projector_grads = HiddenGradients(() if projector is None else projector.parameters())

    @classmethod
    def fit(cls, config: Any) -> Any:
        """`config` with the parts that its options need: they may have changed since with_nitp,
        as TorchTitan's command line has them."""
        return replace(config, **fit_parts(config, config.nitp))

    def _attach_meter(self, decoder: nn.Module, shards: SequenceShards) -> GeometryMeter | None:
        """Let the loss show its states to a meter, on ranks that have a loss."""
        loss, geometry, nitp = self.loss_fn, self.config.geometry, self.config.nitp
        if not (isinstance(loss, MeasuredLoss) and geometry.enable and self._has_loss):
            return None
        loss.meter = GeometryMeter(
            decoder,
            geometry,
            freq=geometry.find_freq(self.config.metrics.log_freq, self.model_config.dim),
            has_targets=isinstance(loss, NITPLoss) and nitp.uses_target,
            num_rows=self.gradient_accumulation_steps * self.config.training.local_batch_size,
            num_chunks=loss.num_chunks,
            shards=shards,
            dims=self.parallel_dims,
            device=self.device,
        )
        return loss.meter

    def _start_meter(self) -> None:
        """A CUDA graph measures at every step what it was captured with, read or not."""
        if self._meter is None:
            return
        self._meter.zero_()
        self._meter.is_counting = (
            self._meter.is_due(self.step) or not self.config.training.disable_cuda_graphs
        )

    @property
    def _has_loss(self) -> bool:
        """Whether the last stage is on this rank."""
        return not self.parallel_dims.pp_enabled or self.pp_has_last_stage

    @property
    def _is_started(self) -> bool:
        """Whether NITP trains in this step."""
        return self.step >= self.config.nitp.start_step

    def train_step(self, data_iterator: Iterator[Batch]) -> None:
        self._start_meter()
        if not isinstance(self.loss_fn, NITPLoss):
            super().train_step(data_iterator)
            return
        num_batches = self.gradient_accumulation_steps * self.num_pipeline_parallel_microbatches
        batches = [next(data_iterator) for _ in range(num_batches)]
        self.loss_fn.sums.zero_()
        self._projector_grads.show()
        if not self._is_started:
            init_moments(self.optimizers)
        weighed = StepBatches(self._weigh_pairs(self.loss_fn, batches), type(self).__name__)
        if self._has_loss and not self.loss_fn.is_reached:
            refuse_updates_without(self.loss_fn, self.optimizers, type(self).__name__)
        super().train_step(weighed)
        weighed.check_all_drawn()

    def forward_backward_step(self, **kwargs: Any) -> torch.Tensor:
        self._projector_grads.show()
        loss = super().forward_backward_step(**kwargs)
        if not self._is_started:
            self._projector_grads.hide()
        return loss

    def _weigh_pairs(self, loss: NITPLoss, batches: list[Batch]) -> list[Batch]:
        """Give every batch of the step its pair weights.

        L_NITP is the mean over the valid pairs of the global batch (all ranks, all accumulation
        steps), so its normaliser must be known before the first backward: valid / global pairs.
        The start step is in the weights too, as a value that CUDA graph replay sees change.
        """
        is_started = self._is_started
        masks = [pair_mask(inputs, labels, loss.nitp) for inputs, labels in batches]
        counts = torch.stack([torch.stack([count, mask.sum()]) for mask, count in masks]).sum(0)
        counts = counts.to(self.device)
        if self.parallel_dims.dp_enabled:
            counts = dist_sum_tensor(counts, self.parallel_dims.get_mesh("batch"))
        num_pairs, num_valid_positions = counts
        # No pair at all gives weights of 0 and a loss of 0, not NaN.
        pair_weight = is_started / num_pairs.clamp(min=1).float()
        assert isinstance(self.metrics_processor, NITPMetricsProcessor)
        self.metrics_processor.start_step(
            StepContext(
                is_started=is_started,
                num_valid_positions=num_valid_positions,
                num_positions=sum(labels.numel() for _, labels in batches) * self.batch_degree,
            )
        )
        return [
            ({**inputs, PAIR_WEIGHT: mask_BL.to(self.device) * pair_weight}, labels)
            for (inputs, labels), (mask_BL, _) in zip(batches, masks, strict=True)
        ]

    def post_dataloading_process(
        self, input_dict: dict[str, torch.Tensor], labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
        weight, others = take_pair_weight(input_dict)
        inputs, labels, model_inputs = super().post_dataloading_process(others, labels)
        parallelism = self.config.parallelism
        weight = shard_pair_weight(weight, self.parallel_dims, parallelism)
        return inputs, labels, model_inputs | weight

    @property
    def batch_degree(self) -> int:
        """Ranks that each read their own rows."""
        dims = self.parallel_dims
        return dims.get_mesh("batch").size() if dims.dp_enabled else 1
