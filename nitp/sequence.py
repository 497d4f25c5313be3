"""The sequence where it is sharded (context and sequence parallelism): this rank's part of it, and
the next token's state at the edges.

Only the first row of each contiguous run of a shard travels: its predecessor is the last row of
some other run. Nothing that travels has a gradient, so no backward collective exists. Runs on torch
alone; of TorchTitan it knows two types.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
import torch.nn.functional as F

from nitp import objective

if TYPE_CHECKING:
    from torchtitan.config import ParallelismConfig
    from torchtitan.distributed import ParallelDims

# ------------------------------------------------------------------------ where positions lie

Run = tuple[int, int]
"""(first position in the whole sequence, length)."""


@dataclass(frozen=True, slots=True)
class SequenceLayout:
    """How the positions of a whole sequence lie on the (cp, tp) ranks.

    Context parallelism gives rank r of C the chunks r and 2C-1-r of 2C (head-tail order) or the
    r-th of C; sequence parallelism slices that local order evenly over the tp ranks.
    """

    seq_len: int
    cp: int
    tp: int
    head_tail: bool

    def runs(self, cp_rank: int, tp_rank: int) -> list[Run]:
        """The contiguous runs of one rank, in its local order."""
        if self.cp > 1 and self.head_tail:
            length = self.seq_len // (2 * self.cp)
            chunks = [(i * length, length) for i in (cp_rank, 2 * self.cp - 1 - cp_rank)]
        else:
            length = self.seq_len // self.cp
            chunks = [(cp_rank * length, length)]
        size = self.seq_len // (self.cp * self.tp)
        return _merge(_slice(chunks, tp_rank * size, size))

    def max_num_runs(self) -> int:
        return max(len(self.runs(c, t)) for c in range(self.cp) for t in range(self.tp))

    def find_start(self, position: int) -> tuple[int, int, int]:
        """(cp rank, tp rank, index) of the run that starts at `position`."""
        for c in range(self.cp):
            for t in range(self.tp):
                for index, (start, _) in enumerate(self.runs(c, t)):
                    if start == position:
                        return c, t, index
        raise AssertionError(f"no run starts at position {position}")


def _slice(runs: list[Run], offset: int, size: int) -> list[Run]:
    """The part [offset, offset + size) of the concatenated runs."""
    part = []
    for start, length in runs:
        first, last = max(offset, 0), min(offset + size, length)
        if first < last:
            part.append((start + first, last - first))
        offset -= length
    return part


def _merge(runs: list[Run]) -> list[Run]:
    merged = runs[:1]
    for start, length in runs[1:]:
        previous, previous_length = merged[-1]
        if previous + previous_length == start:
            merged[-1] = (previous, previous_length + length)
        else:
            merged.append((start, length))
    return merged


# ------------------------------------------------------------------------ this rank's part


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
        cls, dims: "ParallelDims", parallelism: "ParallelismConfig", seq_len: int
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

    def take_layer_slice(self, x_BLD: torch.Tensor) -> torch.Tensor:
        """The same of the residual stream, as it arrives."""
        return x_BLD if self.layers_are_sliced else self.take_slice(x_BLD)

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
        z_BLD = self.take_layer_slice(z_BLD)
        if shift == 0:
            return z_BLD
        return shift_sharded(z_BLD, self.layout, self.cp_group, self.tp_group)

    def sum_over_slices(self, values: torch.Tensor) -> torch.Tensor:
        """Sum over the tensor-parallel ranks. For logged values only: no gradient needs it."""
        if self.tp_group is not None:
            dist.all_reduce(values, group=self.tp_group)
        return values


# ------------------------------------------------------------------------ exchange


def shift_sharded(
    z_BLD: torch.Tensor,
    layout: SequenceLayout,
    cp_group: dist.ProcessGroup | None,
    tp_group: dist.ProcessGroup | None,
) -> torch.Tensor:
    """objective.shift_targets(z, 1) of the whole sequence, of which z_BLD is this rank's part.

    z_BLD: detached, [B, seq_len / (cp * tp), D]. Collectives: one all-gather of [B, runs, D] per
    group that is given; runs is at most 2.
    """
    assert not z_BLD.requires_grad
    cp_rank = 0 if cp_group is None else cp_group.rank()
    tp_rank = 0 if tp_group is None else tp_group.rank()
    starts, _ = _local_bounds(layout.runs(cp_rank, tp_rank))
    starts += starts[-1:] * (layout.max_num_runs() - len(starts))
    # One by one: an index list is a copy from the host, which CUDA graph capture refuses.
    first_rows = torch.stack([z_BLD[:, start] for start in starts], dim=1)
    table = _all_gather(_all_gather(first_rows, tp_group), cp_group)
    return apply_shift(z_BLD, table, layout, cp_rank, tp_rank)


def apply_shift(
    z_BLD: torch.Tensor, table: torch.Tensor, layout: SequenceLayout, cp_rank: int, tp_rank: int
) -> torch.Tensor:
    """Shift locally; fill the end of each run from `table`, [cp, tp, B, runs, D]: first rows."""
    shifted_BLD = F.pad(z_BLD[:, 1:], (0, 0, 0, 1))
    runs = layout.runs(cp_rank, tp_rank)
    _, ends = _local_bounds(runs)
    for (start, length), end in zip(runs, ends, strict=True):
        if start + length == layout.seq_len:
            shifted_BLD[:, end].zero_()
        else:
            c, t, index = layout.find_start(start + length)
            shifted_BLD[:, end] = table[c, t, :, index]
    return shifted_BLD


def _local_bounds(runs: list[Run]) -> tuple[list[int], list[int]]:
    """Local indices of the first and of the last row of each run."""
    starts, ends, offset = [], [], 0
    for _, length in runs:
        starts.append(offset)
        offset += length
        ends.append(offset - 1)
    return starts, ends


def _all_gather(x: torch.Tensor, group: dist.ProcessGroup | None) -> torch.Tensor:
    """Stacked along a new first dim, in rank order."""
    if group is None:
        return x.unsqueeze(0)
    gathered = x.new_empty(group.size() * x.shape[0], *x.shape[1:])
    dist.all_gather_into_tensor(gathered, x, group=group)
    return gathered.view(group.size(), *x.shape)
