"""The geometry of the states that a step or a validation sees, measured on the way.

Owns which states and tokens are measured, where the sums over them lie, and how the ranks' sums
become the figures of the global batch. geometry.py has the mathematics.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import nn
from torchtitan.distributed import ParallelDims

from nitp import geometry, objective
from nitp.config import GeometryConfig
from nitp.decoder import TappedLayers
from nitp.geometry import Moments, PairSums, StateSums
from nitp.sequence import SequenceShards

HIDDEN, PRE_NORM, TARGET = "", "pre_norm_", "target_"
"""Prefixes of the figures: of what the unembedding reads, the same before the final norm, and the
targets of the valid pairs."""


class Reading(NamedTuple):
    """Of the states since `zero_`, by prefix. NaN where a figure does not exist."""

    average_cosine: dict[str, float]
    constant_loss: float
    moments: dict[str, Moments]
    """On the host, for effective_rank, which takes long: where this process does something else
    meanwhile. Empty on every rank but the first of its pipeline stage."""


class GeometryMeter:
    """Sums over the states of the decoder's last stage, on every rank that holds it.

    Measured are the tokens whose label is not ignored, and for targets the valid pairs; of a
    sequence that is sharded each rank takes its slice. `add_hidden` and `add_targets` run inside
    the step (and a CUDA graph), read nothing on the host and change nothing but the sums. The sums
    are buffers of the decoder, out of checkpoints: pipelines infer shapes by running a stage and
    its loss once more, after which they restore the stage's buffers.
    """

    def __init__(
        self,
        decoder: Any,
        options: GeometryConfig,
        *,
        freq: int,
        has_targets: bool,
        num_rows: int,
        num_chunks: int,
        shards: SequenceShards,
        dims: ParallelDims,
        device: torch.device,
    ) -> None:
        """decoder: the stage with norm and unembedding. freq: steps between two measurements.
        num_rows: of this rank in a step. num_chunks: cuts of the sequence, which bound what is
        held in float32 at a time."""
        self.freq = freq
        self.is_counting = True
        """Whether what is added is measured. A CUDA graph keeps what it was captured with."""
        self._shards, self._dims, self._num_chunks = shards, dims, num_chunks
        self._num_rows, self._num_rows_used = num_rows, 0
        self._pre_norm: torch.Tensor | None = None
        self._watched: dict[int, torch.Tensor] = {}
        depths = options.depths(len(decoder.config.layers))
        if depths:
            if not isinstance(decoder.layers, TappedLayers):
                decoder.layers = TappedLayers(decoder.layers)
            self._watched = decoder.layers.watch(set(depths))
        decoder.norm.register_forward_hook(self._note_pre_norm)
        names = [HIDDEN, PRE_NORM, *([TARGET] if has_targets else []), *map(_layer, depths)]
        width = decoder.config.dim
        self._sums = {name: geometry.build_sums(num_rows, width, device=device) for name in names}
        self._next_row = torch.zeros((), dtype=torch.int64, device=device)
        """Number of the next row, read on the device only."""
        self._pairs = torch.zeros(len(names), width + 3, dtype=torch.float64, device=device)
        """Of the rows before those in the sums: `PairSums`, flat."""
        decoder.register_buffer("geometry_next_row", self._next_row, persistent=False)
        for name, sums in self._sums.items():
            for index, x in enumerate(sums):
                decoder.register_buffer(f"geometry_{name}{index}", x, persistent=False)

    # ------------------------------------------------------------------------ inside the step

    def add_hidden(self, h_BLD: torch.Tensor, labels_BL: torch.Tensor) -> None:
        """Add the states of a forward pass: its output h, as the loss gets it, and what was noted
        on its way."""
        slices = {HIDDEN: self._shards.take_slice(h_BLD)}
        assert self._pre_norm is not None
        slices[PRE_NORM] = self._shards.take_layer_slice(self._pre_norm)
        for depth, x_BLD in self._watched.items():
            slices[_layer(depth)] = self._shards.take_layer_slice(x_BLD)
        self._pre_norm = None
        self._watched.clear()
        if not self.is_counting:
            return
        mask_BL = self._shards.take_slice(labels_BL != objective.IGNORE_INDEX)
        for name, x_BLD in slices.items():
            self._update(self._sums[name], x_BLD, mask_BL)
        self._next_row += len(h_BLD)

    def add_targets(self, target_BLD: torch.Tensor, mask_BL: torch.Tensor) -> None:
        """Add the shifted targets of the valid pairs of the rows whose hidden states come next:
        this rank's slice, as the loss has it."""
        if self.is_counting:
            self._update(self._sums[TARGET], target_BLD, mask_BL)

    def _update(self, sums: StateSums, h_BLD: torch.Tensor, mask_BL: torch.Tensor) -> None:
        row_B = self._next_row + torch.arange(len(h_BLD), device=h_BLD.device)
        with _tensor_cores():
            for h, mask in zip(
                h_BLD.detach().chunk(self._num_chunks, dim=1),
                mask_BL.chunk(self._num_chunks, dim=1),
                strict=True,
            ):
                geometry.update_(sums, h, mask, row_B)

    def _note_pre_norm(self, norm: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._pre_norm = args[0]

    # ------------------------------------------------------------------------ between steps

    def is_due(self, step: int) -> bool:
        """Whether a logged step is measured."""
        return step == 1 or step % self.freq == 0

    def zero_(self) -> None:
        """Start anew."""
        for sums in self._sums.values():
            geometry.zero_(sums)
        self._pairs.zero_()
        self._next_row.zero_()
        self._num_rows_used = 0

    @torch.no_grad()
    def make_room(self, num_rows: int) -> None:
        """Before that many rows come which are more than a step's, as in validation. Collective
        over the ranks that share rows."""
        if self._num_rows_used + num_rows > self._num_rows:
            self._finish_rows()
        self._num_rows_used += num_rows

    def _finish_rows(self) -> None:
        """Complete the rows over the ranks that share them, and free their numbers."""
        unit_sum_SRD = torch.stack([sums.unit_sum_RD for sums in self._sums.values()])
        count_SR = torch.stack([sums.count_R for sums in self._sums.values()])
        for group in (self._shards.cp_group, self._shards.tp_group):
            if group is not None:
                dist.all_reduce(unit_sum_SRD, group=group)
                dist.all_reduce(count_SR, group=group)
        for row, unit_sum_RD, count_R in zip(self._pairs, unit_sum_SRD, count_SR, strict=True):
            row += _flatten(geometry.pair_sums(unit_sum_RD, count_R))
        for sums in self._sums.values():
            geometry.zero_rows_(sums)
        self._next_row.zero_()
        self._num_rows_used = 0

    @torch.no_grad()
    def read(self) -> Reading:
        """The figures of the global batch. Collective over the ranks of the stage; 2 D^2 bytes a
        state to the first of them, and O(D)."""
        self._finish_rows()
        pairs = self._pairs.clone()
        if self._dims.dp_enabled:
            dist.all_reduce(pairs, group=self._dims.get_mesh("batch").get_group())
        by_name = {name: _unflatten(row) for name, row in zip(self._sums, pairs, strict=True)}
        figures = [each.average_cosine() for each in by_name.values()]
        if TARGET in by_name:
            figures.append(by_name[TARGET].constant_loss())
        values = torch.stack(figures).tolist()
        return Reading(
            average_cosine=dict(zip(by_name, values, strict=False)),
            constant_loss=values[-1] if TARGET in by_name else geometry.NAN,
            moments=self._gather_moments(),
        )

    def _gather_moments(self) -> dict[str, Moments]:
        """Of the whole batch: each rank's products about the common mean, added at the first."""
        parts = [geometry.centre(sums) for sums in self._sums.values()]
        groups = [g for g in (self._shards.tp_group, self._data_group()) if g is not None]
        if not groups:
            return {
                name: Moments(*(x.cpu() for x in part))
                for name, part in zip(self._sums, parts, strict=True)
            }
        count_S = torch.stack([part.num_states for part in parts])
        sum_SD = torch.stack([part.num_states * part.mean_D for part in parts])
        for group in groups:
            dist.all_reduce(count_S, group=group)
            dist.all_reduce(sum_SD, group=group)
        mean_SD = sum_SD / count_S.clamp(min=1).unsqueeze(-1)
        width = mean_SD.shape[-1]
        row_K, column_K = torch.triu_indices(width, width, device=mean_SD.device)
        moments = {}
        for index, (name, part) in enumerate(zip(self._sums, parts, strict=True)):
            scatter_DD = part.scatter_about(mean_SD[index])
            triangle_K = scatter_DD[row_K, column_K].float()
            if not _reduce_to_first(triangle_K, groups):
                continue
            upper_DD = torch.zeros(width, width, dtype=torch.float64)
            upper_DD[row_K.cpu(), column_K.cpu()] = triangle_K.double().cpu()
            scatter_DD = upper_DD + upper_DD.triu(1).T
            moments[name] = Moments(count_S[index].cpu(), mean_SD[index].cpu(), scatter_DD)
        return moments

    def _data_group(self) -> dist.ProcessGroup | None:
        """The ranks that hold other tokens of the same stage and tensor-parallel rank."""
        if not self._dims.dp_cp_enabled:
            return None
        mesh = self._dims.get_optional_mesh("loss")
        assert mesh is not None
        return mesh.get_group()


def _layer(depth: int) -> str:
    return f"layer_{depth}_"


def _reduce_to_first(x: torch.Tensor, groups: list[dist.ProcessGroup]) -> bool:
    """Sum `x` over the product of the groups, at its first rank; whether this is that."""
    for group in groups:
        dist.reduce(x, group=group, group_dst=0)
        if group.rank() != 0:
            return False
    return True


def _flatten(pairs: PairSums) -> torch.Tensor:
    scalars = pairs.num_states, pairs.square_sum, pairs.count_square_sum
    return torch.cat([torch.stack(scalars), pairs.unit_sum_D])


def _unflatten(row: torch.Tensor) -> PairSums:
    num_states, square_sum, count_square_sum = row[:3]
    return PairSums(num_states, row[3:], square_sum, count_square_sum)


@contextmanager
def _tensor_cores() -> Iterator[None]:
    """Products of float32 on a GPU's tensor cores (TF32): an eighth of the time. Rounds what is
    multiplied to 11 bits, where bfloat16 states have 8."""
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = "tf32"
    try:
        yield
    finally:
        matmul.fp32_precision = before
