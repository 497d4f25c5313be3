"""Which documents each stream of a source visits, and in which order: arithmetic on numbers.

The streams fall into groups, stream j into group j % num_groups. A group reads blocks of its own,
every num_groups-th of the epoch's order, and its streams share each block's documents: of the p-th
block, member k takes those whose place i has (i + p) % group_size == k. With many blocks each
stream is its own group, so that no block is read twice; with few, num_streams / num_groups
streams read the same one. Neither depends on ranks: if R ranks divide the groups, each rank reads
1/R of the blocks.

A document's place in its block is shuffled within windows of `buffer` documents, as many as a
stream holds. Imports no torch.
"""

import numpy as np

_MIN_BLOCKS = 16
"""Blocks per group: as groups differ by at most one, streams of a source differ by at most 1/16."""


class Order:
    """The order of a source with `num_blocks` blocks."""

    def __init__(
        self,
        num_blocks: int,
        num_streams: int,
        *,
        shuffle: bool = True,
        buffer: int = 256,
        seed: tuple[int, ...] = (0,),
    ) -> None:
        """seed: numbers of 32 bits; sources of one run need different ones."""
        self.buffer = buffer
        self.num_groups = max(
            groups
            for groups in range(1, num_streams + 1)
            if num_streams % groups == 0 and (groups == 1 or groups * _MIN_BLOCKS <= num_blocks)
        )
        self.group_size = num_streams // self.num_groups
        self._num_blocks = num_blocks
        self._shuffle = shuffle
        self._seed = seed
        self._epoch = -1
        self._blocks = np.zeros(0, np.int64)

    def blocks_of(self, stream: int, epoch: int) -> np.ndarray:
        """The blocks that the stream reads in that epoch, in order, int64."""
        if epoch != self._epoch:
            self._blocks = self._permute(self._num_blocks, epoch)
            self._epoch = epoch
        return self._blocks[stream % self.num_groups :: self.num_groups].copy()

    def visit(
        self, stream: int, epoch: int, block: int, position: int, first: int, size: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """What the stream visits of documents first..first + size of a block, its `position`-th,
        with `first` a multiple of the buffer and `size` at most the buffer.

        Returns their places in the block, ascending, and which documents they are, counted from
        `first`, both int64.
        """
        document = self._permute(size, epoch, block, first)
        place = np.arange(first, first + size)
        member = stream // self.num_groups
        is_own = (place + position) % self.group_size == member
        return place[is_own], document[is_own]

    def _permute(self, size: int, *purpose: int) -> np.ndarray:
        if not self._shuffle or size == 1:
            return np.arange(size)
        # RandomState, not Generator: its numbers are the same in every numpy release.
        return np.random.RandomState([*self._seed, *purpose]).permutation(size)
