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
from torchtitan.models.common.feed_forward import FeedForward
from torchtitan.protocols.model_spec import ModelSpec
from torchtitan.trainer import Trainer

from nitp._torchtitan import built_class
from nitp.checkpoint import NITPCheckpointManager, without_projector
from nitp.config import NITPConfig
from nitp.decoder import NITPDecoder, nitp_decoder_class
from nitp.extend import extended_config, plain_config
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


def fit_parts(
    config: Trainer.Config, nitp: NITPConfig, *, rebuild_projector: bool = False
) -> dict[str, Any]:
    """The fields of `config` that a run with these options needs; none that has them is changed.

    With NITP off that is the plain model and loss; whatever else `config` has stays. A projector
    that is there already must have the shape that the options ask for, unless it may be rebuilt.

    Raises ValueError, naming the field, for what NITP cannot work with.
    """
    spec = config.model_spec
    if spec is None or not isinstance(spec.model, Decoder.Config):
        kind = "no model" if spec is None else f"{spec.name}, which is not a decoder"
        raise ValueError(f"with_nitp needs a decoder-only language model; model_spec has {kind}.")
    if not nitp.is_active:
        return {"model_spec": _plain_model(spec), "loss": _plain_loss(config.loss)}
    return {
        "model_spec": _convert_model(spec, nitp, rebuild_projector),
        "loss": _convert_loss(config.loss),
        **{name: _convert_component(name, getattr(config, name)) for name in COMPONENTS},
    }


def _convert_component(name: str, component: Any) -> Any:
    """The same component with NITP's part, whatever subclass of TorchTitan's class it is."""
    plain, part = COMPONENTS[name]
    if issubclass(built_class(component), plain):
        return _extend(part, component)
    if name == "checkpoint":
        # Another manager than DCP's: it saves and loads the projector with the model, or says why
        # not. What NITP adds to DCP's is only the permission to load without it.
        return component
    raise ValueError(
        f"{name} ({type(component).__qualname__}) must be the Config of a subclass of "
        f"{plain.__module__}.{plain.__name__}: NITP adds its part to that. Derive "
        f"{built_class(component).__name__} from it."
    )


def _extend(part: Any, component: Any) -> Any:
    given: Any = type(component)
    wanted = extended_config(part, given)
    return component if wanted is given else derive(component, wanted)


# ------------------------------------------------------------------------ model


def _convert_model(spec: ModelSpec, nitp: NITPConfig, rebuild_projector: bool) -> ModelSpec:
    """The same model, of the NITP subclass, with the projector sharded and staged beside it."""
    model: Any = spec.model
    nitp.check_depth(len(model.layers))
    projector = build_projector_config(model.dim, nitp)
    if issubclass(built_class(model), NITPDecoder):
        if _width(model.nitp_projector) == _width(projector):
            return spec
        if not rebuild_projector:
            raise _projector_error(model.nitp_projector, projector, nitp)
        return replace(spec, model=replace(model, nitp_projector=projector))
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


def _width(projector: FeedForward.Config | None) -> int:
    """Its hidden width: the rest may have been converted (to float8, to another platform)."""
    return 0 if projector is None else projector.w1.out_features


def _projector_error(built: Any, asked: Any, nitp: NITPConfig) -> ValueError:
    return ValueError(
        f'nitp.projector ("{nitp.projector}"), nitp.projector_ratio ({nitp.projector_ratio}) '
        f'and nitp.loss ("{nitp.loss}") ask for a projector of width {_width(asked)}, but '
        f"with_nitp has built one of width {_width(built)} (0: none). Give them to with_nitp."
    )


# ------------------------------------------------------------------------ loss


def _convert_loss(loss: Any) -> Any:
    """The same cross entropy, joined by NITP in the same chunks or, where it has none, in as many
    as TorchTitan's default."""
    if isinstance(loss, CrossEntropyLoss.Config):
        return NITPLoss.Config(loss_fn=_check_cross_entropy(loss), is_given_whole=True)
    if not isinstance(loss, ChunkedLossWrapper.Config):
        _check_cross_entropy(loss)
    _check_cross_entropy(loss.loss_fn)
    return _extend(NITPLoss, loss)


def _check_cross_entropy(loss: Any) -> Any:
    if type(loss) is not CrossEntropyLoss.Config:
        raise ValueError(
            f"loss ({type(loss).__qualname__}) must be CrossEntropyLoss, by itself or in a "
            "ChunkedLossWrapper: NITP joins cross entropy chunk by chunk. Use "
            "ChunkedLossWrapper.Config(loss_fn=CrossEntropyLoss.Config(global_vocab_size=...))."
        )
    return loss


def _plain_loss(loss: Any) -> Any:
    if not issubclass(built_class(loss), NITPLoss):
        return loss
    return loss.loss_fn if loss.is_given_whole else derive(loss, plain_config(MeasuredLoss, loss))
