"""Which parts of a training configuration NITP takes the place of, and gives back.

The options stand in one place, NITPTrainer.Config.nitp. What is made here holds no copy of them:
decoder and loss take them from there when the trainer is built, so that a change on TorchTitan's
command line reaches both. Only the projector's shape is fixed earlier, and compared then.
"""

from dataclasses import replace
from functools import cache
from typing import Any

from torchtitan.components.checkpointer import CheckpointManager
from torchtitan.components.loss import ChunkedLossWrapper, CrossEntropyLoss
from torchtitan.components.metrics import MetricsProcessor
from torchtitan.components.validate import Validator
from torchtitan.config import derive
from torchtitan.models.common.decoder import Decoder
from torchtitan.protocols.model_spec import ModelSpec
from torchtitan.trainer import Trainer

from nitp._torchtitan import built_class
from nitp.checkpoint import NITPCheckpointManager, without_projector
from nitp.config import NITPConfig
from nitp.decoder import NITPDecoder, nitp_decoder_class
from nitp.loss import NITPLoss
from nitp.measured import MeasuredLoss
from nitp.metrics import NITPMetricsProcessor
from nitp.parallelize import wrap_parallelize, wrap_pipelining
from nitp.projector import build_projector_config
from nitp.validate import NITPValidator

COMPONENTS: dict[str, tuple[Any, Any]] = {
    "metrics": (MetricsProcessor, NITPMetricsProcessor),
    "validator": (Validator, NITPValidator),
    "checkpoint": (CheckpointManager, NITPCheckpointManager),
}
"""Field of the configuration -> (TorchTitan's class, NITP's subclass)."""


def fit_parts(config: Trainer.Config, nitp: NITPConfig) -> dict[str, Any]:
    """The fields of `config` that a run with these options needs; none that has them is changed.

    With NITP off that is the plain model and loss; whatever else `config` has stays.

    Raises ValueError, naming the field, for what NITP cannot work with.
    """
    spec = config.model_spec
    if spec is None or not isinstance(spec.model, Decoder.Config):
        kind = "no model" if spec is None else f"{spec.name}, which is not a decoder"
        raise ValueError(f"with_nitp needs a decoder-only language model; model_spec has {kind}.")
    if not nitp.is_active:
        return {"model_spec": _plain_model(spec), "loss": _plain_loss(config.loss)}
    return {
        "model_spec": _convert_model(spec, nitp),
        "loss": _convert_loss(config.loss),
        **{name: _convert_component(name, getattr(config, name)) for name in COMPONENTS},
    }


def _convert_component(name: str, component: Any) -> Any:
    """NITP's subclass in the place of TorchTitan's class; a subclass of NITP's is the user's."""
    plain, extended = COMPONENTS[name]
    if isinstance(component, extended.Config):
        return component
    if type(component) is plain.Config:
        return derive(component, extended.Config)
    raise ValueError(
        f"{name} ({type(component).__qualname__}) must be {plain.__name__}.Config or derive from "
        f"{extended.__name__}.Config: NITP's part would be missing in another class. Derive "
        f"{built_class(component).__name__} from {extended.__module__}.{extended.__name__}."
    )


# ------------------------------------------------------------------------ model


def _convert_model(spec: ModelSpec, nitp: NITPConfig) -> ModelSpec:
    """The same model, of the NITP subclass, with the projector sharded and staged beside it."""
    model: Any = spec.model
    nitp.check_depth(len(model.layers))
    projector = build_projector_config(model.dim, nitp)
    if issubclass(built_class(model), NITPDecoder):
        _check_projector(model.nitp_projector, projector, nitp)
        return spec
    config_class: Any = nitp_decoder_class(built_class(model)).Config
    return replace(
        spec,
        model=derive(model, config_class, nitp_projector=projector),
        parallelize_fn=_wrap_parallelize(spec.parallelize_fn),
        pipelining_fn=_wrap_pipelining(spec.pipelining_fn) if spec.pipelining_fn else None,
        state_dict_adapter=spec.state_dict_adapter and without_projector(spec.state_dict_adapter),
    )


_wrap_parallelize, _wrap_pipelining = cache(wrap_parallelize), cache(wrap_pipelining)


def _plain_model(spec: ModelSpec) -> ModelSpec:
    """The model without NITP. The functions around it let a plain decoder pass."""
    decoder_class = built_class(spec.model)
    if not issubclass(decoder_class, NITPDecoder):
        return spec
    return replace(spec, model=derive(spec.model, decoder_class.plain_class.Config))


def _check_projector(built: Any, asked: Any, nitp: NITPConfig) -> None:
    """The projector may have been converted (to float8, to another platform) since it was built."""
    widths = [0 if config is None else config.w1.out_features for config in (built, asked)]
    if widths[0] != widths[1]:
        raise ValueError(
            f'nitp.projector ("{nitp.projector}"), nitp.projector_ratio ({nitp.projector_ratio}) '
            f'and nitp.loss ("{nitp.loss}") ask for a projector of width {widths[1]}, but '
            f"with_nitp has built one of width {widths[0]} (0: none). Give them to with_nitp."
        )


# ------------------------------------------------------------------------ loss


def _convert_loss(loss: Any) -> NITPLoss.Config:
    """The same cross entropy in the same chunks, joined by NITP."""
    if isinstance(loss, NITPLoss.Config):
        return loss
    is_chunked = type(loss) in (ChunkedLossWrapper.Config, MeasuredLoss.Config)
    if not is_chunked or type(loss.loss_fn) is not CrossEntropyLoss.Config:
        raise ValueError(
            f"loss ({type(loss).__qualname__}) must be ChunkedLossWrapper over CrossEntropyLoss: "
            "NITP joins cross entropy chunk by chunk. Use ChunkedLossWrapper.Config("
            "loss_fn=CrossEntropyLoss.Config(global_vocab_size=...))."
        )
    return derive(loss, NITPLoss.Config)


def _plain_loss(loss: Any) -> Any:
    return derive(loss, ChunkedLossWrapper.Config) if isinstance(loss, NITPLoss.Config) else loss
