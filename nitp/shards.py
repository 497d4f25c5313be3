"""This rank's part of each sequence, and what NITP does at its edges."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torchtitan.config import ParallelismConfig
from torchtitan.distributed import ParallelDims

from nitp import objective
from nitp.exchange import SequenceLayout, shift_sharded


@dataclass(frozen=True, slots=True)
class SequenceShards:
    """Context parallelism shards every activation's sequence; under tensor parallelism each rank
    further takes one slice of it for NITP, whether or not the layers (sequence parallelism) do.

    Under tensor parallelism the hidden state arrives whole on each rank (TorchTitan gathers it
    before the unembedding), E_k(x) as its slice with sequence parallelism, else whole.
    """

    layout: SequenceLayout | None = None
    """None: sequences are whole."""

    cp_group: dist.ProcessGroup | None = None
    tp_group: dist.ProcessGroup | None = None
    layers_are_sliced: bool = False
    """Whether E_k(x) arrives as this rank's slice."""

    @classmethod
    def from_config(
        cls, dims: ParallelDims, parallelism: ParallelismConfig, seq_len: int
    ) -> "SequenceShards":
        if not dims.cp_enabled and not dims.tp_enabled:
            return cls()
        head_tail = parallelism.context_parallel_load_balancer == "headtail"
        return cls(
            layout=SequenceLayout(seq_len, dims.cp, dims.tp, head_tail),
            cp_group=dims.get_mesh("cp").get_group() if dims.cp_enabled else None,
            tp_group=dims.get_mesh("tp").get_group() if dims.tp_enabled else None,
            layers_are_sliced=dims.tp_enabled and parallelism.enable_sequence_parallel,
        )

    def take_slice(self, x_BL: torch.Tensor) -> torch.Tensor:
        """This rank's slice of [B, L, ...] that is whole over the tensor-parallel ranks."""
        if self.tp_group is None:
            return x_BL
        return x_BL.chunk(self.tp_group.size(), dim=1)[self.tp_group.rank()]

    def embed_slice(self, grad_BLD: torch.Tensor) -> torch.Tensor:
        """Gradient of the whole from the gradient of `take_slice`: zero elsewhere.

        The ranks' results add up to the gradient (partial over tp), like the unembedding's.
        """
        if self.tp_group is None:
            return grad_BLD
        length, rank, size = grad_BLD.shape[1], self.tp_group.rank(), self.tp_group.size()
        return F.pad(grad_BLD, (0, 0, rank * length, (size - 1 - rank) * length))

    def shift_targets(self, z_BLD: torch.Tensor, shift: int) -> torch.Tensor:
        """Targets of this rank's slice of positions, from E_k(x) as it arrives, detached."""
        if self.layout is None:
            return objective.shift_targets(z_BLD, shift)
        if not self.layers_are_sliced:
            z_BLD = self.take_slice(z_BLD)
        if shift == 0:
            return z_BLD
        return shift_sharded(z_BLD, self.layout, self.cp_group, self.tp_group)

    def sum_over_slices(self, values: torch.Tensor) -> torch.Tensor:
        """Sum over the tensor-parallel ranks. For logged values only: no gradient needs it."""
        if self.tp_group is not None:
            dist.all_reduce(values, group=self.tp_group)
        return values
