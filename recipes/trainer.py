"""The trainer of a run."""

from dataclasses import dataclass, field
from typing import Any

from torchtitan.distributed import ParallelDims

from nitp.trainer import NITPTrainer
from recipes.agreement import check_ranks_agree
from recipes.data.loader import PackedDataLoader
from recipes.data.metrics import DataMetricsProcessor


class RunTrainer(NITPTrainer):
    """NITPTrainer that logs what each source of the data gives, for ranks that agree on the run."""

    @dataclass(kw_only=True, slots=True)
    class Config(NITPTrainer.Config):
        settings: dict[str, Any] = field(default_factory=dict)
        """The resolved options, compared across ranks at start-up."""

    config: Config
    dataloader: PackedDataLoader

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        assert isinstance(self.metrics_processor, DataMetricsProcessor)
        self.metrics_processor.loader = self.dataloader

    def init_distributed(self) -> ParallelDims:
        dims = super().init_distributed()
        if self.config.comm.mode == "default":
            check_ranks_agree(self.config.settings, self.config.dataloader.data)
        return dims
