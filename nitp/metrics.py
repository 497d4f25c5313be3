"""NITP's figures on the console and in TensorBoard: global means, reduced at log steps only."""

import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torchtitan.components.metrics import MetricsProcessor
from torchtitan.distributed.utils import dist_sum_tensor
from torchtitan.tools.logging import logger
from torchtitan.tools.utils import device_type

from nitp.config import NITPConfig
from nitp.loss import NITPLoss, Sum
from nitp.projector import PROJECTOR_NAME


@dataclass(frozen=True, slots=True)
class StepContext:
    """What the trainer knows of a step's global batch before it runs."""

    is_started: bool
    """Whether NITP trains in this step (nitp.start_step)."""

    num_valid_positions: torch.Tensor
    """Positions of the global batch that take part in NITP, int64 scalar on the device."""

    num_positions: int
    """Token positions of the global batch."""


class NITPMetricsProcessor(MetricsProcessor):
    """TorchTitan's metrics, and the NITP tags of `log` and `log_validation`.

    Logged values: `loss_metrics/ntp_loss` per valid label; `loss_metrics/nitp_loss` and
    `nitp/cosine` per valid pair, without lambda; `nitp/valid_fraction` share of the positions that
    take part;
    `nitp/weight` lambda in force; `nitp/projector_grad_norm` before clipping; `nitp/grad_ratio`
    norm of lambda dL_NITP over norm of dL_NTP, both at the decoder's output (not under tensor
    parallelism, where it would cost a reduction of the whole gradient).
    """

    @dataclass(kw_only=True, slots=True)
    class Config(MetricsProcessor.Config):
        pass

    step_context: StepContext | None = None
    last_ntp_loss: float | None = None
    """`loss_metrics/ntp_loss` as last logged; None before the first logged step."""

    def set_run(
        self,
        *,
        nitp: NITPConfig,
        loss: NITPLoss | None,
        total_steps: int,
        max_norm: float,
        has_loss: bool,
    ) -> None:
        """Tell what only the trainer has. `loss` is None for a run without NITP; `has_loss` is
        false on ranks of a pipeline without its last stage."""
        self._nitp, self._loss, self._has_loss = nitp, loss, has_loss
        self._total_steps, self._max_norm = total_steps, max_norm
        self._first_log: tuple[int, float] | None = None

    def log(
        self,
        step: int,
        global_avg_loss: float,
        global_max_loss: float,
        grad_norm: float,
        extra_metrics: dict[str, Any] | None = None,
    ) -> None:
        global_avg_loss = self._from_last_stage(global_avg_loss)
        global_max_loss = self._from_last_stage(global_max_loss)
        metrics = dict(extra_metrics or {})
        metrics |= self._training_metrics(global_avg_loss, grad_norm)
        self.last_ntp_loss = metrics["loss_metrics/ntp_loss"]
        seconds = time.perf_counter() - self.time_last_log
        num_dp_ranks = self.parallel_dims.world_size // self.parallel_dims.non_data_parallel_size
        tokens_per_s = self.ntokens_since_last_log * num_dp_ranks / seconds
        with _without_info_lines():  # one line of ours replaces TorchTitan's
            super().log(step, global_avg_loss, global_max_loss, grad_norm, metrics)
        logger.info(self._line(step, global_avg_loss, grad_norm, tokens_per_s, metrics))

    def log_validation(
        self, loss: float, step: int, extra_metrics: dict[str, Any] | None = None
    ) -> None:
        loss = self._from_last_stage(loss)
        metrics = dict(extra_metrics or {})
        text = f"validation  step {step:>6}  ntp {loss:7.4f}"
        if self._loss is not None:
            sums = self._reduced_sums(self._loss)
            nitp_loss = float(sums[Sum.NITP] / sums[Sum.WEIGHT].clamp(min=1))
            metrics["validation_metrics/nitp_loss"] = nitp_loss
            text += f"  nitp {nitp_loss:.4f}"
        with _without_info_lines():
            super().log_validation(loss, step, metrics)
        logger.info(self.color.yellow + text + self.color.reset)

    def _training_metrics(self, global_avg_loss: float, grad_norm: float) -> dict[str, float]:
        if self._loss is None:
            return {"loss_metrics/ntp_loss": global_avg_loss}
        assert self.step_context is not None
        sums = self._reduced_sums(self._loss).tolist()
        metrics = {
            "loss_metrics/ntp_loss": sums[Sum.NTP],
            "nitp/valid_fraction": self.step_context.num_valid_positions.item()
            / self.step_context.num_positions,
            "nitp/weight": self._nitp.weight if self.step_context.is_started else 0.0,
        }
        if self.step_context.is_started:
            metrics |= {
                "loss_metrics/nitp_loss": sums[Sum.NITP],
                "nitp/cosine": sums[Sum.COSINE],
            }
            if not self.parallel_dims.tp_enabled:  # there dL_NTP / dh is partial on each rank
                ratio_sq = sums[Sum.NITP_GRAD_SQ] / sums[Sum.NTP_GRAD_SQ]
                metrics["nitp/grad_ratio"] = ratio_sq**0.5
            projector_norm = self._projector_grad_norm()
            if projector_norm is not None and math.isfinite(grad_norm):
                # The gradients are clipped by now, all by the same factor.
                clip = min(1.0, self._max_norm / (grad_norm + 1e-6))
                metrics["nitp/projector_grad_norm"] = projector_norm / clip
        return metrics

    def _reduced_sums(self, loss: NITPLoss) -> torch.Tensor:
        sums, dims = loss.sums, self.parallel_dims
        if dims.dp_cp_enabled:
            sums = dist_sum_tensor(sums, dims.get_optional_mesh("loss"))
        if dims.pp_enabled:  # stages before the last hold zeros
            sums = dist_sum_tensor(sums, dims.get_mesh("pp"))
        return sums

    def _from_last_stage(self, loss: float) -> float:
        """`loss` of the pipeline's last stage on every stage, where TorchTitan has none."""
        if not self.parallel_dims.pp_enabled:
            return loss
        device = torch.device(device_type)
        value = torch.tensor(loss if self._has_loss else 0.0, dtype=torch.float64, device=device)
        return dist_sum_tensor(value, self.parallel_dims.get_mesh("pp")).item()

    def _projector_grad_norm(self) -> float | None:
        assert self.model_parts is not None
        projector = getattr(self.model_parts[-1], PROJECTOR_NAME)
        if projector is None:
            return None
        grads = [p.grad for p in projector.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(grads)
        return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)

    def _line(
        self,
        step: int,
        loss: float,
        grad_norm: float,
        tokens_per_s: float,
        metrics: dict[str, Any],
    ) -> str:
        c = self.color
        parts = [f"{c.red}step {step:>6}", f"{c.green}loss {loss:8.4f}"]
        if self._loss is not None:
            parts.append(f"ntp {metrics['loss_metrics/ntp_loss']:8.4f}")
        if "loss_metrics/nitp_loss" in metrics:
            parts += [
                f"nitp {metrics['loss_metrics/nitp_loss']:.4f}",
                f"{c.turquoise}cosine {metrics['nitp/cosine']:6.4f}",
            ]
        if "nitp/valid_fraction" in metrics:
            parts.append(f"{c.turquoise}valid {metrics['nitp/valid_fraction']:.3f}")
        parts.append(f"{c.orange}grad_norm {grad_norm:7.3f}")
        parts += [f"lr {v:.2e}" for k, v in metrics.items() if k.startswith("lr/")]
        parts += [f"{c.blue}tokens/s {tokens_per_s:,.0f}", f"left {self._time_left(step)}"]
        return "  ".join(parts) + c.reset

    def _time_left(self, step: int) -> str:
        """Time to the last step at the mean pace since the first logged step."""
        now = time.perf_counter()
        if self._first_log is None:
            self._first_log = (step, now)
            return "-"
        first_step, first_time = self._first_log
        seconds = (now - first_time) / (step - first_step) * (self._total_steps - step)
        return str(timedelta(seconds=round(seconds)))


@contextmanager
def _without_info_lines() -> Iterator[None]:
    """Hold back TorchTitan's informational lines; warnings and errors pass."""
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)
