"""Which documents a stream visits: every one once, wherever blocks and streams leave them."""

import numpy as np
import pytest

from recipes.data.order import Order


def visits(order: Order, sizes: list[int], stream: int, epoch: int = 0) -> list[tuple[int, int]]:
    """(block, document) in the order in which the stream visits them."""
    visited = []
    for position, block in enumerate(order.blocks_of(stream, epoch).tolist()):
        for first in range(0, sizes[block], order.buffer):
            size = min(order.buffer, sizes[block] - first)
            places, documents = order.visit(stream, epoch, block, position, first, size)
            assert all(first <= place < first + size for place in places)
            visited += [(block, first + document) for document in documents.tolist()]
    return visited


def everything(sizes: list[int]) -> list[tuple[int, int]]:
    return [(block, document) for block, size in enumerate(sizes) for document in range(size)]


@pytest.mark.parametrize(
    ("sizes", "num_streams", "num_groups"),
    [
        ([1] * 7, 4, 1),  # few files
        ([1] * 1000, 8, 8),  # many files
        ([100], 6, 1),  # one file
        ([100, 3, 0, 41], 6, 1),
        ([7, 0, 12, 5] * 12, 12, 3),
        ([9] * 65, 4, 4),
        ([9] * 63, 4, 2),
    ],
)
@pytest.mark.parametrize("shuffle", [True, False])
def test_in_an_epoch_one_stream_visits_each_document_once(
    sizes: list[int], num_streams: int, num_groups: int, shuffle: bool
) -> None:
    order = Order(len(sizes), num_streams, shuffle=shuffle, buffer=8)
    assert order.num_groups == num_groups
    for epoch in range(2):
        dealt = [visits(order, sizes, stream, epoch) for stream in range(num_streams)]
        assert sorted(sum(dealt, [])) == everything(sizes)


def test_streams_share_evenly_whether_documents_lie_in_one_block_or_each_in_its_own() -> None:
    for sizes in ([96], [1] * 96, [3] * 32, [12] * 8):
        order = Order(len(sizes), 8)
        assert [len(visits(order, sizes, stream)) for stream in range(8)] == [12] * 8


def test_with_many_blocks_no_block_is_read_by_two_streams() -> None:
    order = Order(16 * 8, 8)
    blocks = [set(order.blocks_of(stream, 0)) for stream in range(8)]
    assert sum(map(len, blocks)) == len(set.union(*blocks)) == 16 * 8


def test_a_rank_reads_its_share_of_the_blocks_if_the_ranks_divide_the_groups() -> None:
    order = Order(16 * 4, 16)
    assert order.num_groups == 4
    for num_ranks, share in ((1, 64), (2, 32), (4, 16), (16, 16)):
        for rank in range(num_ranks):
            streams = range(rank, 16, num_ranks)
            blocks = {block for j in streams for block in order.blocks_of(j, 0).tolist()}
            assert len(blocks) == share


def test_the_order_depends_on_seed_and_epoch_and_on_nothing_else() -> None:
    sizes = [5] * 20
    orders = [
        visits(Order(20, 1, seed=seed), sizes, 0, epoch)
        for seed, epoch in (((0, 0), 0), ((0, 0), 1), ((0, 1), 0), ((1, 0), 0))
    ]
    assert len({tuple(order) for order in orders}) == 4
    again = Order(20, 1, seed=(0, 0))
    again.blocks_of(0, 7)
    assert visits(again, sizes, 0, 1) == orders[1]


def test_without_shuffle_the_order_is_that_of_the_files() -> None:
    sizes = [3, 0, 20]
    order = Order(3, 1, shuffle=False, buffer=8)
    assert all(visits(order, sizes, 0, epoch) == everything(sizes) for epoch in range(2))


def test_documents_are_shuffled_within_windows_of_the_buffer() -> None:
    order = Order(1, 1, buffer=10)
    documents = [document for _, document in visits(order, [35], 0)]
    windows = [documents[first : first + 10] for first in range(0, 35, 10)]
    assert [sorted(window) for window in windows] == [
        list(range(first, min(first + 10, 35))) for first in range(0, 35, 10)
    ]
    assert all(window != sorted(window) for window in windows)
    assert np.ptp([*map(np.argmin, windows)]) > 0, "each window has an order of its own"


def test_single_documents_come_in_uniform_order() -> None:
    # 400 orders of 5 documents: each is first in 80 of them, +- 4 standard deviations of 8.
    firsts = [visits(Order(5, 1, seed=(seed,)), [1] * 5, 0)[0][0] for seed in range(400)]
    assert all(48 <= firsts.count(document) <= 112 for document in range(5))
