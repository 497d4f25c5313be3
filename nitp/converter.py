"""with_nitp: the one point where NITP meets a TorchTitan training configuration."""

from dataclasses import replace
from functools import cache
from typing import Any

from torchtitan.components.checkpointer import CheckpointManager
from torchtitan.components.loss import ChunkedLossWrapper, CrossEntropyLoss
from torchtitan.config import derive
from torchtitan.models.common.decoder import Decoder
from torchtitan.protocols.model_spec import ModelSpec
from torchtitan.trainer import Trainer

from nitp._torchtitan import built_class
from nitp.checkpoint import NITPCheckpointManager, without_projector
from nitp.config import NITPConfig
from nitp.decoder import nitp_decoder_class
from nitp.loss import NITPLoss
from nitp.metrics import NITPMetricsProcessor
from nitp.parallelize import wrap_parallelize, wrap_pipelining
from nitp.projector import build_projector_config
from nitp.trainer import NITPTrainer
from nitp.validate import NITPValidator


def with_nitp(trainer_config: Trainer.Config, nitp: NITPConfig) -> NITPTrainer.Config:
    """A training configuration that adds NITP to `trainer_config`, which stays as it is.

    `trainer_config` must train a TorchTitan `Decoder` with ChunkedLossWrapper over cross entropy
    (TorchTitan's usual loss). With `nitp.enable = false` or `nitp.weight = 0` model and loss stay
    untouched: the next-token baseline, bit for bit.

    Raises ValueError, naming the field, for anything else.
    """
    if type(trainer_config) is not Trainer.Config:
        raise ValueError(
            f"with_nitp takes a torchtitan Trainer.Config, not "
            f"{type(trainer_config).__qualname__}. Apply it once, to the plain configuration."
        )
    spec = trainer_config.model_spec
    if spec is None or not isinstance(spec.model, Decoder.Config):
        kind = "no model" if spec is None else f"{spec.name}, which is not a decoder"
        raise ValueError(f"with_nitp needs a decoder-only language model; model_spec has {kind}.")
    if type(trainer_config.checkpoint) not in (
        CheckpointManager.Config,
        NITPCheckpointManager.Config,
    ):
        raise ValueError(
            f"checkpoint ({type(trainer_config.checkpoint).__qualname__}) must be "
            "CheckpointManager.Config: others would lose the projector without a word."
        )
    parts: dict[str, Any] = {}
    if nitp.is_active:
        parts = {
            "model_spec": convert_model(spec, nitp),
            "loss": convert_loss(trainer_config.loss, nitp),
        }
    return derive(
        trainer_config,
        NITPTrainer.Config,
        nitp=nitp,
        checkpoint=derive(trainer_config.checkpoint, NITPCheckpointManager.Config),
        metrics=derive(trainer_config.metrics, NITPMetricsProcessor.Config),
        validator=derive(trainer_config.validator, NITPValidator.Config),
        **parts,
    )


def convert_model(spec: ModelSpec, nitp: NITPConfig) -> ModelSpec:
    """The same model, of the NITP subclass, with the projector sharded and staged beside it."""
    model = spec.model
    assert isinstance(model, Decoder.Config)
    nitp.check_depth(len(model.layers))
    config_class: Any = nitp_decoder_class(built_class(model)).Config
    return replace(
        spec,
        model=derive(
            model,
            config_class,
            nitp=nitp,
            nitp_projector=build_projector_config(model.dim, nitp),
        ),
        parallelize_fn=_wrap_parallelize(spec.parallelize_fn),
        pipelining_fn=_wrap_pipelining(spec.pipelining_fn) if spec.pipelining_fn else None,
        state_dict_adapter=spec.state_dict_adapter and without_projector(spec.state_dict_adapter),
    )


_wrap_parallelize, _wrap_pipelining = cache(wrap_parallelize), cache(wrap_pipelining)


def convert_loss(loss: Any, nitp: NITPConfig) -> NITPLoss.Config:
    """The same cross entropy in the same chunks, joined by NITP."""
    is_chunked = type(loss) is ChunkedLossWrapper.Config
    if not is_chunked or type(loss.loss_fn) is not CrossEntropyLoss.Config:
        raise ValueError(
            f"loss ({type(loss).__qualname__}) must be ChunkedLossWrapper over CrossEntropyLoss: "
            "NITP joins cross entropy chunk by chunk. Use ChunkedLossWrapper.Config("
            "loss_fn=CrossEntropyLoss.Config(global_vocab_size=...))."
        )
    return derive(loss, NITPLoss.Config, nitp=nitp)
