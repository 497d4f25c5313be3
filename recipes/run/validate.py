"""Validation whose data do not depend on the number of ranks: documents held out of the training
data, and named sets."""

from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torchtitan.components.tokenizer import HuggingFaceTokenizer
from torchtitan.config import derive
from torchtitan.tools.logging import logger

from nitp.validate import NITPValidator
from recipes.data.config import ValidationSetConfig
from recipes.data.loader import PackedDataLoader
from recipes.data.validation_sets import (
    ValidationSet,
    ValidationSetLoader,
    load_validation_sets,
)
from recipes.run.metrics import RunMetricsProcessor
from recipes.run.stopping import StopAgreement, UntilStopLoader


class _LossCatcher:
    """Stands before the metrics processor: what a validator would log, it keeps."""

    def __init__(self, metrics: RunMetricsProcessor) -> None:
        self._metrics = metrics
        self.loss = 0.0

    @property
    def ntokens_since_last_log(self) -> int:
        """Tokens of all validators count for the throughput that is logged at last."""
        return self._metrics.ntokens_since_last_log

    @ntokens_since_last_log.setter
    def ntokens_since_last_log(self, count: int) -> None:
        self._metrics.ntokens_since_last_log = count

    def log_validation(self, loss: float, step: int) -> None:
        self.loss = loss


class LossReader(NITPValidator):
    """NITPValidator that leaves logging to others."""

    @dataclass(kw_only=True, slots=True)
    class Config(NITPValidator.Config):
        pass

    dl_config: Any

    def __init__(self, config: Config, *, metrics_processor: Any, **kwargs: Any) -> None:
        self._catcher = _LossCatcher(metrics_processor)
        super().__init__(config, metrics_processor=self._catcher, **kwargs)
        self._loader_config = self.dl_config

    def attach_stop(self, agreement: StopAgreement) -> None:
        """Take what ends a reading. Called before any."""
        batches_per_step = 1
        if self.parallel_dims.pp_enabled:
            batches_per_step = (
                self.local_batch_size // self.parallelism.pipeline_parallel_microbatch_size
            )
        self.dl_config = UntilStopLoader(self._loader_config, agreement, batches_per_step)
        self._stop = agreement

    def read_loss(self, model_parts: list[nn.Module], step: int) -> float | None:
        """Nats per valid label, on ranks of a pipeline's last stage; None, on all ranks, if they
        have agreed to stop before all labels were read. The loss's sums and meter are of these
        labels until the next reading."""
        if self._stop.is_reached:
            return None
        NITPValidator.validate(self, model_parts, step)
        self._stop.read()
        return None if self.dl_config.was_cut else self._catcher.loss


class RunValidator(LossReader):
    """Reads the documents held out, one step of which is a global batch, as in training, and each
    of `sets` whole.

    The figures without a set's name are of the documents held out or, where there are none, of the
    first set. These are read last: NITP's sums and the geometry are then theirs alone.

    Raises ValueError as load_validation_sets does.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(LossReader.Config):
        global_batch_size: int
        """training.global_batch_size; -1: one batch of each rank."""

        sets: list[ValidationSetConfig] = field(default_factory=list)
        """The `[[validation.sets]]`; with them `dataloader` is of this project."""

    def __init__(
        self,
        config: Config,
        *,
        dp_world_size: int,
        dp_rank: int,
        local_batch_size: int,
        tokenizer: HuggingFaceTokenizer,
        seq_len: int,
        metrics_processor: RunMetricsProcessor,
        **kwargs: Any,
    ) -> None:
        sets, own = [], None
        if config.sets:
            assert isinstance(config.dataloader, PackedDataLoader.Config)
            data = config.dataloader.data
            sets = load_validation_sets(
                data,
                config.sets,
                tokenizer,
                seq_len=seq_len,
                dp_rank=dp_rank,
                dp_world_size=dp_world_size,
                local_batch_size=local_batch_size,
            )
            own = sets[0] if data.validation_fraction == 0 else None
        shared = {
            "dp_world_size": dp_world_size,
            "dp_rank": dp_rank,
            "local_batch_size": local_batch_size,
            "tokenizer": tokenizer,
            "seq_len": seq_len,
            "metrics_processor": metrics_processor,
            **kwargs,
        }
        if own is not None:
            config = derive(config, type(self).Config, **_whole(own, local_batch_size))
        elif config.steps != -1 and config.global_batch_size != -1:
            batches_per_step = config.global_batch_size // (dp_world_size * local_batch_size)
            config = derive(config, type(self).Config, steps=config.steps * batches_per_step)
        super().__init__(config, **shared)
        self._metrics = metrics_processor
        self._sets = sets
        self._readers = [
            None if held_out is own else _build_reader(held_out, shared) for held_out in sets
        ]
        """Of each set; None: this validator itself."""

    def validate(self, model_parts: list[nn.Module], step: int) -> None:
        """Read all, and log it together, or nothing if the ranks agree to stop before."""
        losses: list[float] = []
        for reader in (*filter(None, self._readers), self):
            loss = reader.read_loss(model_parts, step)
            if loss is None:
                logger.warning(f"The validation at step {step} is left out: asked to stop.")
                return
            losses.append(loss)
        *others, own_loss = losses
        left = iter(others)
        set_losses = [
            (held_out, own_loss if reader is None else next(left))
            for held_out, reader in zip(self._sets, self._readers, strict=True)
        ]
        self._metrics.log_validation(own_loss, step, set_losses=set_losses)

    def attach_stop(self, agreement: StopAgreement) -> None:
        super().attach_stop(agreement)
        for reader in filter(None, self._readers):
            reader.attach_stop(agreement)


def _build_reader(held_out: ValidationSet, shared: dict[str, Any]) -> LossReader:
    reader = LossReader.Config(**_whole(held_out, shared["local_batch_size"])).build(**shared)
    assert isinstance(reader, LossReader)
    return reader


def _whole(held_out: ValidationSet, local_batch_size: int) -> dict[str, Any]:
    """The options of a validator that reads the set whole."""
    return {
        "steps": len(held_out.rows_N3L) // local_batch_size,
        "dataloader": ValidationSetLoader.Config(held_out=held_out),
    }
