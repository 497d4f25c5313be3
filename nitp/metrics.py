"""NITP's figures among TorchTitan's metrics: global means, reduced at log steps only."""

import math
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.distributed.tensor import DTensor
from torchtitan.components.metrics import MetricsProcessor
from torchtitan.distributed.utils import dist_sum_tensor
from torchtitan.tools.logging import logger

from nitp import geometry
from nitp.geometry import Moments
from nitp.loss import NITPLoss, Sum
from nitp.meter import GeometryMeter
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


class _Attached(NamedTuple):
    """What the trainer has only after the metrics processor."""

    loss: NITPLoss | None
    max_norm: float
    meter: GeometryMeter | None


class _Pending(NamedTuple):
    """Figures that another thread works on."""

    step: int
    prefix: str
    tags: Future[dict[str, float]]


_NITP_LOSS = {
    "geometry/": "loss_metrics/nitp_loss",
    "validation_metrics/": "validation_metrics/nitp_loss",
}


class NITPMetricsProcessor(MetricsProcessor):
    """TorchTitan's metrics, and NITP's tags beside them.

    Logged values: `loss_metrics/ntp_loss` per valid label; `loss_metrics/nitp_loss`,
    `nitp/cosine` and `validation_metrics/nitp_loss` per valid pair, without lambda;
    `nitp/valid_fraction` share of the positions that take part; `nitp/weight` lambda in force;
    `nitp/projector_grad_norm` before clipping; `nitp/grad_ratio` norm of lambda dL_NITP over norm
    of dL_NTP, both at the decoder's output (not under tensor parallelism, where it would cost a
    reduction of the whole gradient).

    Of the states that the loss's meter has seen, from the ranks that hold the loss:
    `geometry/average_cosine` and `nitp/constant_loss`, `nitp/skill` for the cosine loss, the
    same under `validation_metrics/`. `effective_rank` is of the first of these ranks alone, and
    comes when its eigenvalues are known, under its own step, while training goes on. A figure that
    does not exist is left out.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(MetricsProcessor.Config):
        pass

    def __init__(self, config: Config, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        self._attached: _Attached | None = None
        self._step: StepContext | None = None
        self.last_tags: dict[str, float] = {}
        """NITP's, of what was logged last."""
        self._pending: deque[_Pending] = deque()
        self._has_warned = False
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="eigenvalues")

    def attach(
        self, *, loss: NITPLoss | None, max_norm: float, meter: GeometryMeter | None
    ) -> None:
        """Take the loss whose sums are logged, None in a run without NITP; the norm that gradients
        are clipped to; and the meter of the states, None where nothing is measured.

        TorchTitan builds the loss after this. Nothing is logged before this call: RuntimeError.
        """
        self._attached = _Attached(loss, max_norm, meter)

    def start_step(self, context: StepContext) -> None:
        """Take what is known of a step's global batch. Every step with NITP starts with it."""
        self._step = context

    def log(
        self,
        step: int,
        global_avg_loss: float,
        global_max_loss: float,
        grad_norm: float,
        extra_metrics: dict[str, Any] | None = None,
    ) -> None:
        self._log_known()
        metrics = self.training_metrics(global_avg_loss, grad_norm)
        meter = self._run.meter
        if meter is not None and meter.is_due(step):
            metrics |= self._measure(meter, step, "geometry/", "nitp/", metrics)
        self.last_tags = metrics
        super().log(
            step, global_avg_loss, global_max_loss, grad_norm, (extra_metrics or {}) | metrics
        )

    def log_validation(
        self, loss: float, step: int, extra_metrics: dict[str, Any] | None = None
    ) -> None:
        self._log_known()
        metrics = self.validation_metrics()
        meter, prefix = self._run.meter, "validation_metrics/"
        if meter is not None:
            metrics |= self._measure(meter, step, prefix, prefix, metrics)
        self.last_tags = metrics
        super().log_validation(loss, step, (extra_metrics or {}) | metrics)

    def log_pending(self) -> None:
        """Log the effective ranks that are being computed, when all are known."""
        while self._pending:
            self._log_first()

    def _log_known(self) -> None:
        """The same, of those that are known by now. Weights & Biases alone waits for all: it drops
        what is of an earlier step than the last."""
        while self._pending and (self.config.enable_wandb or self._pending[0].tags.done()):
            self._log_first()

    def _log_first(self) -> None:
        step, _, ranks = self._pending.popleft()
        if tags := ranks.result():
            self.logger.log(tags, step)

    def close(self) -> None:
        self.log_pending()
        self._thread.shutdown()
        super().close()

    def training_metrics(self, global_avg_loss: float, grad_norm: float) -> dict[str, float]:
        """NITP's tags of the step that has run. Collective."""
        loss, max_norm = self._run.loss, self._run.max_norm
        if loss is None:
            return {"loss_metrics/ntp_loss": global_avg_loss}
        if self._step is None:
            raise RuntimeError("call NITPMetricsProcessor.start_step before a step is logged")
        sums = self._reduced_sums(loss).tolist()
        metrics = {
            "loss_metrics/ntp_loss": sums[Sum.NTP],
            "nitp/valid_fraction": self._step.num_valid_positions.item() / self._step.num_positions,
            "nitp/weight": loss.nitp.weight if self._step.is_started else 0.0,
        }
        if self._step.is_started:
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
                clip = min(1.0, max_norm / (grad_norm + 1e-6))
                metrics["nitp/projector_grad_norm"] = projector_norm / clip
        return metrics

    def validation_metrics(self) -> dict[str, float]:
        """NITP's tags of the validation that has run. Collective."""
        loss = self._run.loss
        if loss is None:
            return {}
        sums = self._reduced_sums(loss).tolist()
        if sums[Sum.WEIGHT] == 0.0:
            return {}
        return {"validation_metrics/nitp_loss": sums[Sum.NITP] / sums[Sum.WEIGHT]}

    def _measure(
        self,
        meter: GeometryMeter,
        step: int,
        prefix: str,
        nitp_prefix: str,
        metrics: dict[str, float],
    ) -> dict[str, float]:
        """Tags of the meter's figures; the effective ranks follow. Collective."""
        loss, reading = self._run.loss, meter.read()
        tags = {f"{prefix}{name}average_cosine": x for name, x in reading.average_cosine.items()}
        if loss is not None and loss.nitp.loss == "cosine":
            nitp_loss = metrics.get(_NITP_LOSS[prefix], math.nan)
            tags[f"{nitp_prefix}constant_loss"] = reading.constant_loss
            tags[f"{nitp_prefix}skill"] = geometry.skill(nitp_loss, reading.constant_loss)
        if reading.moments:
            if any(pending.prefix == prefix for pending in self._pending):
                self._wait_for_eigenvalues(step, prefix, meter)
            ranks = self._thread.submit(_effective_ranks, prefix, reading.moments)
            self._pending.append(_Pending(step, prefix, ranks))
        return _existing(tags)

    def _wait_for_eigenvalues(self, step: int, prefix: str, meter: GeometryMeter) -> None:
        """One measurement of a kind is computed at a time: no more matrices are held than that."""
        if not self._has_warned:
            self._has_warned = True
            training = f"geometry.freq ({meter.freq})"
            option = training if prefix == "geometry/" else "validation.freq"
            logger.warning(
                f"The eigenvalues of step {self._pending[0].step} are not known at step {step}, "
                f"which measures again: training waits for them. Raise {option}."
            )
        self.log_pending()

    @property
    def _run(self) -> _Attached:
        if self._attached is None:
            raise RuntimeError(
                "call NITPMetricsProcessor.attach before anything is logged, as NITPTrainer does"
            )
        return self._attached

    def _reduced_sums(self, loss: NITPLoss) -> torch.Tensor:
        sums, dims = loss.sums, self.parallel_dims
        if dims.dp_cp_enabled:
            sums = dist_sum_tensor(sums, dims.get_optional_mesh("loss"))
        if dims.pp_enabled:  # stages before the last hold zeros
            sums = dist_sum_tensor(sums, dims.get_mesh("pp"))
        return sums

    def _projector_grad_norm(self) -> float | None:
        assert self.model_parts is not None
        projector = getattr(self.model_parts[-1], PROJECTOR_NAME)
        if projector is None:
            return None
        grads = [p.grad for p in projector.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(grads)
        return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)


def _effective_ranks(prefix: str, moments: dict[str, Moments]) -> dict[str, float]:
    tags = {}
    for name, each in moments.items():
        try:
            tags[f"{prefix}{name}effective_rank"] = each.effective_rank().item()
        except torch.linalg.LinAlgError as error:  # a run goes on without this figure
            logger.warning(f"{prefix}{name}effective_rank is left out: {error}")
    return _existing(tags)


def _existing(tags: dict[str, float]) -> dict[str, float]:
    return {tag: value for tag, value in tags.items() if not math.isnan(value)}
