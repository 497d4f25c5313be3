"""The trainer of a run."""

from dataclasses import dataclass

from nitp.trainer import NITPTrainer
from recipes.data.loader import PackedDataLoader
from recipes.data.metrics import DataMetricsProcessor


class RunTrainer(NITPTrainer):
    """NITPTrainer that logs what each source of the data gives."""

    @dataclass(kw_only=True, slots=True)
    class Config(NITPTrainer.Config):
        pass

    config: Config
    dataloader: PackedDataLoader

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        assert isinstance(self.metrics_processor, DataMetricsProcessor)
        self.metrics_processor.loader = self.dataloader
