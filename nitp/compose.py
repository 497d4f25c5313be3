"""Which of TorchTitan's techniques run with NITP and its measurements; the others are refused by
name at start-up."""

from torchtitan.config import ParallelismConfig
from torchtitan.models.common.decoder import Decoder
from torchtitan.trainer import Trainer

from nitp._torchtitan import built_class
from nitp.config import GeometryConfig, NITPConfig
from nitp.measured import MeasuredLoss


def check_composition(config: Trainer.Config, nitp: NITPConfig, geometry: GeometryConfig) -> None:
    """Raise ValueError naming the option of `config` that does not run with NITP, or with the
    measurements of a run that has them."""
    if geometry.enable and issubclass(built_class(config.loss), MeasuredLoss):
        _check_geometry(config, geometry)
    if not nitp.is_active:
        return
    nitp.check_steps(config.training.steps)
    parallelism = config.parallelism
    tp, cp = parallelism.tensor_parallel_degree, parallelism.context_parallel_degree
    pp = parallelism.pipeline_parallel_degree
    _check_plain_tensors(config, "nitp.enable = false")
    # An option of TorchTitan's graph trainer alone.
    mode = getattr(config.compile, "mode", None)
    if mode is not None:
        raise ValueError(
            f'compile.mode ("{mode}") must be None: the loss runs its own backward chunk by chunk, '
            "which a trace of the whole step would lose. Set compile.mode to None, or "
            "nitp.enable = false."
        )
    if cp > 1 and parallelism.context_parallel_load_balancer == "ptrr":
        raise ValueError(
            'parallelism.context_parallel_load_balancer ("ptrr") must be "headtail" or "none": '
            "NITP knows where the next token lies only in these orders."
        )
    if tp > 1 or cp > 1 or pp > 1:
        _check_exotic_variants(nitp, parallelism)
    parts = parallelism.module_fqns_per_model_part
    if pp > 1 and parts is not None and not {"norm", "lm_head"} <= set(parts[-1]):
        raise ValueError(
            f"parallelism.module_fqns_per_model_part ({parts}) must have norm and lm_head in its "
            "last part, where the projector reads the hidden state."
        )
    num_chunks, seq_len = config.loss.num_chunks, config.training.seq_len
    if seq_len % (num_chunks * tp * cp):
        raise ValueError(
            f"training.seq_len ({seq_len}) must be a multiple of loss.num_chunks ({num_chunks}) "
            f"times the tensor-parallel ({tp}) and context-parallel ({cp}) degrees. Lower "
            "loss.num_chunks or change training.seq_len."
        )


def _check_plain_tensors(config: Trainer.Config, remedy: str) -> None:
    backend, tp = config.parallelism.spmd_backend, config.parallelism.tensor_parallel_degree
    if backend == "full_dtensor" or (backend == "partial_dtensor" and tp > 1):
        raise ValueError(
            f'parallelism.spmd_backend ("{backend}") must be "spmd_types", the default, or '
            '"partial_dtensor" without tensor parallelism: NITP and its measurements work on plain '
            f"tensors. Leave it out, or set {remedy}."
        )
    if config.debug.spmd_typechecking:
        raise ValueError(
            "debug.spmd_typechecking (true) must be false: the tensors of NITP and its "
            f"measurements carry no SPMD types. Or set {remedy}."
        )


def _check_geometry(config: Trainer.Config, geometry: GeometryConfig) -> None:
    _check_plain_tensors(config, "geometry.enable = false")
    log_freq = config.metrics.log_freq
    if geometry.freq is not None and geometry.freq % log_freq:
        raise ValueError(
            f"geometry.freq ({geometry.freq}) must be a multiple of metrics.log_freq ({log_freq}): "
            "it is measured at logged steps. Leave it out to measure at each of them."
        )
    assert config.model_spec is not None and isinstance(config.model_spec.model, Decoder.Config)
    depths = geometry.depths(len(config.model_spec.model.layers))
    pp = config.parallelism.pipeline_parallel_degree
    if depths and pp > 1:
        raise ValueError(
            f"geometry.layers ({geometry.layers}) is not implemented with "
            f"parallelism.pipeline_parallel_degree ({pp}): labels, which say what to measure, are "
            "at the last stage only. Leave it out."
        )


def _check_exotic_variants(nitp: NITPConfig, parallelism: ParallelismConfig) -> None:
    """Ablation variants that need whole sequences, or a gradient across shards, on one device."""
    where = "with tensor, context or pipeline parallelism"
    if not nitp.stop_gradient:
        raise ValueError(
            f"nitp.stop_gradient (false) is not implemented {where}: the target's gradient would "
            "cross devices. Use data parallelism."
        )
    if not nitp.uses_target:
        raise ValueError(
            f'nitp.loss ("{nitp.loss}") is not implemented {where}: it compares all tokens of a '
            "document. Use data parallelism."
        )
    if parallelism.tensor_parallel_degree > 1 and nitp.hidden == "pre_norm":
        raise ValueError(
            'nitp.hidden ("pre_norm") is not implemented with tensor parallelism. Use "post_norm".'
        )
