"""The shift across sequence shards, on all ranks of a layout in one process."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torchtitan.config import ParallelismConfig

from nitp import objective
from nitp.sequence import SequenceLayout, SequenceShards, apply_shift

B, L, D = 2, 48, 3
LAYOUTS = [
    SequenceLayout(L, cp, tp, head_tail)
    for cp in (1, 2, 3, 4)
    for tp in (1, 2, 3)
    for head_tail in (True, False)
    if L % (2 * cp * tp) == 0
]


def _positions(layout: SequenceLayout, cp_rank: int, tp_rank: int) -> list[int]:
    """Naive: the local order of context parallelism, then its tp-th slice."""
    chunks = torch.arange(L).chunk(2 * layout.cp if layout.head_tail else layout.cp)
    mine = [chunks[cp_rank]]
    if layout.head_tail:
        mine.append(chunks[2 * layout.cp - 1 - cp_rank])
    return torch.cat(mine).chunk(layout.tp)[tp_rank].tolist()


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_runs_cover_each_rank_in_its_local_order(layout):
    for c in range(layout.cp):
        for t in range(layout.tp):
            covered = [p for start, n in layout.runs(c, t) for p in range(start, start + n)]
            assert covered == _positions(layout, c, t)
            assert len(layout.runs(c, t)) <= 2


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_every_shard_equals_its_part_of_the_whole_shifted_sequence(layout):
    z = torch.randn(B, L, D, generator=torch.Generator().manual_seed(0))
    whole = objective.shift_targets(z)
    runs = layout.max_num_runs()
    table = torch.full((layout.cp, layout.tp, B, runs, D), torch.nan)
    for c in range(layout.cp):
        for t in range(layout.tp):
            for index, (start, _) in enumerate(layout.runs(c, t)):
                table[c, t, :, index] = z[:, start]
    for c in range(layout.cp):
        for t in range(layout.tp):
            positions = _positions(layout, c, t)
            shifted = apply_shift(z[:, positions], table, layout, c, t)
            assert torch.equal(shifted, whole[:, positions])


# ------------------------------------------------------------------------ this rank's part


def _group(size: int, rank: int = 0) -> Any:
    return SimpleNamespace(size=lambda: size, rank=lambda: rank)


def _from_config(cp: int, tp: int, **options: Any) -> SequenceShards:
    groups = {"cp": _group(cp), "tp": _group(tp)}
    meshes = {name: SimpleNamespace(get_group=lambda g=g: g) for name, g in groups.items()}
    dims: Any = SimpleNamespace(
        cp=cp, tp=tp, cp_enabled=cp > 1, tp_enabled=tp > 1, get_mesh=meshes.__getitem__
    )
    return SequenceShards.from_config(dims, ParallelismConfig(**options), L)


@pytest.mark.parametrize("tp", [1, 3])
@pytest.mark.parametrize("sequence_parallel", [True, False])
def test_layers_are_sliced_by_sequence_parallelism_alone(tp, sequence_parallel):
    """Without it, E_k(x) is whole on each tensor-parallel rank, which takes its slice."""
    shards = _from_config(2, tp, enable_sequence_parallel=sequence_parallel)
    is_sliced = tp > 1 and sequence_parallel
    assert shards.layers_are_sliced == is_sliced
    x = torch.arange(12)[None]
    length = 12 if tp == 1 or is_sliced else 4
    assert shards.take_layer_slice(x).tolist() == [list(range(length))]


@pytest.mark.parametrize(("balancer", "head_tail"), [("headtail", True), ("none", False)])
def test_the_layout_is_that_of_the_load_balancer(balancer, head_tail):
    shards = _from_config(2, 3, context_parallel_load_balancer=balancer)
    assert shards.layout == SequenceLayout(L, 2, 3, head_tail)
    assert (shards.cp_group.size(), shards.tp_group.size()) == (2, 3)
    assert _from_config(1, 1) == SequenceShards()


def test_gradients_of_all_slices_add_up_to_the_wholes():
    x = torch.randn(B, L, D, generator=torch.Generator().manual_seed(0))
    ranks = [SequenceShards(tp_group=_group(3, rank)) for rank in range(3)]
    slices = [shards.take_slice(x) for shards in ranks]
    assert torch.equal(torch.cat(slices, 1), x)
    embedded = [shards.embed_slice(part) for shards, part in zip(ranks, slices, strict=True)]
    assert torch.equal(torch.stack(embedded).sum(0), x)
