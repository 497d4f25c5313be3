"""What a run shows of itself: NITP's and the data's figures, and one console line of its own."""

import logging
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NamedTuple

import torch
from torchtitan.distributed.utils import dist_sum_tensor
from torchtitan.tools.logging import logger
from torchtitan.tools.utils import NoColor, device_type

from nitp._torchtitan import flush_tensorboard
from recipes.data.loader import PackedDataLoader
from recipes.data.metrics import count_sources
from recipes.data.validation_sets import ValidationSet
from recipes.run.tensorboard import CurvesMetricsProcessor


class _Progress(NamedTuple):
    """What the trainer has only after the metrics processor."""

    loader: PackedDataLoader
    total_steps: int
    has_loss: bool


class RunMetricsProcessor(CurvesMetricsProcessor):
    """NITP's metrics, those of `count_sources`, and a console line in place of TorchTitan's.

    The line has the loss on every rank, on stages of a pipeline before the last too.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(CurvesMetricsProcessor.Config):
        pass

    def __init__(self, config: Config, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        if not sys.stdout.isatty() or os.environ.get("NO_COLOR"):
            self.color = NoColor()  # escape codes are for terminals: https://no-color.org
        self.last_ntp_loss: float | None = None
        """`loss_metrics/ntp_loss` as last logged; None before the first logged step."""
        self._progress: _Progress | None = None
        self._first_log: tuple[int, float] | None = None

    def attach_progress(
        self, *, loader: PackedDataLoader, total_steps: int, has_loss: bool
    ) -> None:
        """Take the loader whose documents are counted, the run's number of steps, and whether this
        rank has the loss: false on ranks of a pipeline without its last stage.

        TorchTitan builds the loader after this. Nothing is logged before this call: RuntimeError.
        """
        self._progress = _Progress(loader, total_steps, has_loss)

    @property
    def progress(self) -> _Progress:
        if self._progress is None:
            raise RuntimeError(
                "call RunMetricsProcessor.attach_progress before anything is logged, as RunTrainer "
                "does"
            )
        return self._progress

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
        counts = count_sources(self.progress.loader, self.parallel_dims)
        metrics = (extra_metrics or {}) | counts
        seconds = time.perf_counter() - self.time_last_log
        num_dp_ranks = self.parallel_dims.world_size // self.parallel_dims.non_data_parallel_size
        tokens_per_s = self.ntokens_since_last_log * num_dp_ranks / seconds
        with _without_info_lines():  # one line of ours replaces TorchTitan's
            super().log(step, global_avg_loss, global_max_loss, grad_norm, metrics)
        self.last_ntp_loss = self.last_tags["loss_metrics/ntp_loss"]
        shown = metrics | self.last_tags
        logger.info(self._line(step, global_avg_loss, grad_norm, tokens_per_s, shown))

    def log_validation(
        self,
        loss: float,
        step: int,
        extra_metrics: dict[str, Any] | None = None,
        set_losses: Sequence[tuple[ValidationSet, float]] = (),
    ) -> None:
        """set_losses: nats per label of each set of [[validation.sets]]."""
        loss = self._from_last_stage(loss)
        metrics, text = dict(extra_metrics or {}), ""
        for held_out, set_loss in set_losses:
            set_loss = self._from_last_stage(set_loss)
            metrics[f"validation_metrics/{held_out.name}/loss"] = set_loss
            text += f"  {held_out.name} {set_loss:.4f}"
            bits = held_out.bits_per_byte(set_loss)
            if bits is not None:
                metrics[f"validation_metrics/{held_out.name}/bits_per_byte"] = bits
                text += f" ({bits:.4f} bits/byte)"
        with _without_info_lines():
            super().log_validation(loss, step, metrics)
        if "validation_metrics/nitp_loss" in self.last_tags:
            text = f"  nitp {self.last_tags['validation_metrics/nitp_loss']:.4f}{text}"
        text = f"validation  step {step:>6}  ntp {loss:7.4f}{text}"
        logger.info(self.color.yellow + text + self.color.reset)

    def flush(self) -> None:
        """Put the curves into their files, if that is possible."""
        with _only_warning():
            self.log_pending()
            flush_tensorboard(self.logger)

    def close(self) -> None:
        with _only_warning():
            super().close()

    def _from_last_stage(self, loss: float) -> float:
        """`loss` of the pipeline's last stage on every stage, where TorchTitan has none."""
        if not self.parallel_dims.pp_enabled:
            return loss
        device = torch.device(device_type)
        known = loss if self.progress.has_loss else 0.0
        value = torch.tensor(known, dtype=torch.float64, device=device)
        return dist_sum_tensor(value, self.parallel_dims.get_mesh("pp")).item()

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
        if "nitp/weight" in metrics:  # else the loss is all there is
            parts.append(f"ntp {metrics['loss_metrics/ntp_loss']:8.4f}")
        if "loss_metrics/nitp_loss" in metrics:
            parts += [
                f"nitp {metrics['loss_metrics/nitp_loss']:.4f}",
                f"{c.turquoise}cosine {metrics['nitp/cosine']:6.4f}",
            ]
        if "nitp/skill" in metrics:
            parts.append(f"{c.turquoise}skill {metrics['nitp/skill']:6.3f}")
        if "nitp/valid_fraction" in metrics:
            parts.append(f"{c.turquoise}valid {metrics['nitp/valid_fraction']:.3f}")
        parts.append(f"{c.orange}grad_norm {grad_norm:7.3f}")
        # Groups of parameters have a rate each; those that differ in weight decay share it.
        rates = (f"lr {v:.2e}" for k, v in metrics.items() if k.startswith("lr/"))
        parts += dict.fromkeys(rates)
        parts += [f"{c.blue}tokens/s {tokens_per_s:,.0f}", f"left {self._time_left(step)}"]
        return "  ".join(parts) + c.reset

    def _time_left(self, step: int) -> str:
        """Time to the last step at the mean pace since the first logged step."""
        now = time.perf_counter()
        if self._first_log is None:
            self._first_log = (step, now)
            return "-"
        first_step, first_time = self._first_log
        seconds = (now - first_time) / (step - first_step) * (self.progress.total_steps - step)
        return str(timedelta(seconds=round(seconds)))


@contextmanager
def _only_warning() -> Iterator[None]:
    """A run whose curves cannot be written to their end is no failed run."""
    try:
        yield
    except Exception as error:  # a full disk, a service that is gone: each logger raises its own
        logger.warning(f"The curves are not complete: {error!r}")


@contextmanager
def _without_info_lines() -> Iterator[None]:
    """Hold back TorchTitan's informational lines; warnings and errors pass."""
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)
