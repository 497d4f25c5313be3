"""Which of TorchTitan's techniques run with NITP; the others are refused by name at start-up."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nitp.trainer import NITPTrainer


def check_composition(config: "NITPTrainer.Config") -> None:
    """Raise ValueError naming the option of `config` that NITP does not run with."""
    if not config.nitp.is_active:
        return
    parallelism = config.parallelism
    for name, what in (
        ("tensor_parallel_degree", "tensor parallelism"),
        ("context_parallel_degree", "context parallelism"),
        ("pipeline_parallel_degree", "pipeline parallelism"),
        ("expert_parallel_degree", "expert parallelism"),
    ):
        degree = getattr(parallelism, name)
        if degree > 1:
            raise ValueError(
                f"parallelism.{name} ({degree}) must be 1: NITP with {what} is not implemented. "
                "Set it to 1 and use data parallelism, or set nitp.enable = false."
            )
    num_chunks, seq_len = config.loss.num_chunks, config.training.seq_len
    if seq_len % num_chunks:
        raise ValueError(
            f"loss.num_chunks ({num_chunks}) must divide training.seq_len ({seq_len})."
        )
