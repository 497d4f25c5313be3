"""Which of TorchTitan's techniques run with NITP; the others are refused by name at start-up."""

from torchtitan.config import ParallelismConfig
from torchtitan.trainer import Trainer

from nitp.config import NITPConfig


def check_composition(config: Trainer.Config, nitp: NITPConfig) -> None:
    """Raise ValueError naming the option of `config` that does not run with NITP."""
    if not nitp.is_active:
        return
    nitp.check_steps(config.training.steps)
    parallelism = config.parallelism
    tp, cp = parallelism.tensor_parallel_degree, parallelism.context_parallel_degree
    pp = parallelism.pipeline_parallel_degree
    backend = parallelism.spmd_backend
    if backend == "full_dtensor" or (backend == "partial_dtensor" and tp > 1):
        raise ValueError(
            f'parallelism.spmd_backend ("{backend}") must be "spmd_types", the default, or '
            '"partial_dtensor" without tensor parallelism: NITP works on plain tensors.'
        )
    if config.debug.spmd_typechecking:
        raise ValueError(
            "debug.spmd_typechecking (true) must be false: NITP's tensors carry no SPMD types."
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
