"""Where the curves of a start go: a folder of their own, from the first value on; and how
TensorBoard's tab of custom scalars lays them out."""

import re
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.utils.tensorboard import SummaryWriter
from torchtitan.components.metrics import (
    BaseLogger,
    LoggerContainer,
    MetricsProcessor,
    TensorBoardLogger,
)
from torchtitan.distributed import ParallelDims
from torchtitan.tools.logging import logger

from nitp._torchtitan import get_metrics_rank
from nitp.metrics import NITPMetricsProcessor
from recipes.run.curves import name_next_start

_MAX_QUEUE = 1000
"""Values kept in memory, as in TorchTitan's logger."""

LAYOUT: dict[str, dict[str, list[str]]] = {
    "The paper's figures": {
        "Effective rank": [
            "geometry/effective_rank", "geometry/pre_norm_effective_rank",
            "geometry/target_effective_rank",
        ],
        "Average cosine": [
            "geometry/average_cosine", "geometry/pre_norm_average_cosine",
            "geometry/target_average_cosine",
        ],
        "NITP loss, and what a constant prediction gets": [
            "loss_metrics/nitp_loss", "nitp/constant_loss",
        ],
        "Skill: 0 is a constant prediction, 1 is perfect": [
            "nitp/skill", "validation_metrics/skill",
        ],
        "Cross entropy of the next token": ["loss_metrics/ntp_loss", "validation_metrics/loss"],
        "Cross entropy of the held-out sets": ["validation_metrics/*/loss"],
        "Bits per byte of the held-out sets": ["validation_metrics/*/bits_per_byte"],
    },
    "Cost": {
        "Tokens/s per device": ["throughput(tps)"],
        "Time of a step (s)": ["time_metrics/end_to_end(s)"],
        "Memory (GiB)": ["memory/max_active(GiB)", "memory/max_reserved(GiB)"],
    },
}  # fmt: skip
"""Category -> chart -> tags; a chart shows those that the run has. `*` is any part of a tag."""


class CurvesLogger(TensorBoardLogger):
    """TorchTitan's, but its folder comes with the first value: a start that fails before leaves no
    empty curves. Where they cannot be written any more the run goes on without, and says so once.
    """

    def __init__(self, folder: Path, tag: str | None) -> None:
        self.folder, self.tag = folder, tag
        self._has_failed = False

    def log(self, metrics: dict[str, Any], step: int) -> None:
        if self._has_failed:
            return
        try:
            super().log(metrics, step)
        except Exception as error:  # the disk's, or what TensorBoard's writing thread makes of it
            self._has_failed = True
            logger.warning(f"From step {step} on {self.folder} has no curves: {error!r}")

    @cached_property
    def writer(self) -> SummaryWriter:
        writer = SummaryWriter(str(self.folder), max_queue=_MAX_QUEUE)
        prefix = "" if self.tag is None else f"{self.tag}/"  # as TensorBoardLogger names a value
        writer.add_custom_scalars(
            {
                category: {
                    chart: ["Multiline", [_match_tag(prefix + tag) for tag in tags]]
                    for chart, tags in charts.items()
                }
                for category, charts in LAYOUT.items()
            }
        )
        return writer

    def close(self) -> None:
        if "writer" in self.__dict__:
            super().close()


def _match_tag(tag: str) -> str:
    """The regular expression of a tag of LAYOUT."""
    return f"^{re.escape(tag)}$".replace(re.escape("*"), "[^/]+")


class CurvesMetricsProcessor(NITPMetricsProcessor):
    """Names the folder of the curves by the number of the start.

    TorchTitan names it by the minute of the local time: a run that is killed and starts again
    within one would have two values at the steps that it trains twice, and the order of starts
    would depend on clocks and time zones.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(NITPMetricsProcessor.Config):
        pass

    def _build_metric_logger(
        self,
        *,
        config: MetricsProcessor.Config,
        parallel_dims: ParallelDims,
        dump_folder: str,
        pp_schedule: str,
        tag: str | None = None,
        **kwargs: Any,
    ) -> BaseLogger:
        others = super()._build_metric_logger(
            config=replace(config, enable_tensorboard=False),
            parallel_dims=parallel_dims,
            dump_folder=dump_folder,
            pp_schedule=pp_schedule,
            tag=tag,
            **kwargs,
        )
        if not config.enable_tensorboard:
            return others
        folder, rank = Path(dump_folder, config.save_tb_folder), dist.get_rank()
        if config.save_for_all_ranks:
            names = [name_next_start(folder) if rank == 0 else ""]
            dist.broadcast_object_list(names)
            start = folder / names[0] / f"rank_{rank}"
        elif rank == get_metrics_rank(parallel_dims=parallel_dims, pp_schedule=pp_schedule):
            start = folder / name_next_start(folder)
        else:
            return others
        loggers = LoggerContainer()
        loggers.add_logger(others)
        loggers.add_logger(CurvesLogger(start, tag))
        return loggers
