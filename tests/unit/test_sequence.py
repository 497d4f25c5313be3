"""The shift across sequence shards, on all ranks of a layout in one process."""

import pytest
import torch

from nitp import objective
from nitp.sequence import SequenceLayout, apply_shift

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
