"""The rows of the data once more, independent of the product: documents dealt and packed in plain
loops, one stream at a time. No cursors, ranks or workers: what those must not change.

A source is a list of blocks, a block a list of documents, a document its tokens, EOS the last, or
None if it cannot be read.
"""

import hashlib
from collections.abc import Iterator, Sequence
from fractions import Fraction

import numpy as np

Document = Sequence[int] | None
Source = Sequence[Sequence[Document]]
Row = list[list[int]]
"""[inputs, positions, labels]."""

# 2**64 / g and 2**64 / g**2, rounded, with g**3 = g + 1: Roberts' R2 sequence.
TURN_STEP, STREAM_STEP = 0xC13FA9A902A6328F, 0x91E10DA5C79E7B1C
MIN_BLOCKS_PER_GROUP = 16


def training_rows(
    sources: Sequence[Source],
    *,
    num_streams: int,
    seq_len: int,
    seed: int,
    weights: Sequence[float] = (1,),
    buffer: int = 256,
) -> Iterator[tuple[int, Row, int]]:
    """(source, row, unreadable documents before it in its stream), without end."""
    streams = [
        [
            pack(deal(source, number, stream, num_streams, seed, buffer), seq_len)
            for number, source in enumerate(sources)
        ]
        for stream in range(num_streams)
    ]
    shares = [Fraction(weight) / sum(map(Fraction, weights)) for weight in weights]
    number = 0
    while True:
        turn, stream = divmod(number, num_streams)
        point = Fraction((turn * TURN_STEP + stream * STREAM_STEP) % 2**64, 2**64)
        source, end = 0, shares[0]
        while point >= end:
            source += 1
            end += shares[source]
        yield source, *next(streams[stream][source])
        number += 1


def deal(
    source: Source, number: int, stream: int, num_streams: int, seed: int, buffer: int
) -> Iterator[Document]:
    """The documents of one stream of source `number`, epoch after epoch."""
    num_groups = max(
        g
        for g in range(1, num_streams + 1)
        if num_streams % g == 0 and (g == 1 or g * MIN_BLOCKS_PER_GROUP <= len(source))
    )
    group_size = num_streams // num_groups
    epoch = 0
    while True:
        order = shuffle(len(source), seed, number, epoch)
        own = [
            block for turn, block in enumerate(order) if turn % num_groups == stream % num_groups
        ]
        for position, block in enumerate(own):
            for first in range(0, len(source[block]), buffer):
                window = source[block][first : first + buffer]
                for place, index in enumerate(
                    shuffle(len(window), seed, number, epoch, block, first), first
                ):
                    if (place + position) % group_size == stream // num_groups:
                        yield window[index]
        epoch += 1


def shuffle(size: int, *key: int) -> list[int]:
    return np.random.RandomState(key).permutation(size).tolist()


def pack(documents: Iterator[Document], seq_len: int) -> Iterator[tuple[Row, int]]:
    """Rows without padding, and how many unreadable documents were passed over since the row
    before; where a document goes on in the next row its positions restart."""
    row: Row = [[], [], []]
    num_bad = 0
    for tokens in documents:
        position = 0
        if tokens is None:
            num_bad += 1
            continue
        for token, label in zip(tokens[:-1], tokens[1:], strict=True):
            for part, value in zip(row, (token, position, label), strict=True):
                part.append(value)
            position += 1
            if len(row[0]) == seq_len:
                yield row, num_bad
                row, position, num_bad = [[], [], []], 0, 0


def is_held_out(name: str, fraction: float) -> bool:
    """Whether the validation split has the document of that name."""
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64 < fraction
