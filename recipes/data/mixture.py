"""The packed data: row i as a function of sources, weights, sequence length and stream count.

    row i of the data      row i // S of stream i % S        (S streams)
    a row of stream j      the next row of stream j of one source, chosen by the weights

So each source has its exact share of the tokens whatever the lengths of its documents, and its own
rows do not depend on the other sources. Knows nothing of ranks, workers or batches; the loader
chooses rows. Imports no torch.

The choice goes by a point in [0, 1) for each row, of which every source owns an interval as long
as its share. Points of successive rows of a stream differ by 1/g, those of successive streams by
1/g**2 with g**3 = g + 1, the steps of Roberts' R2 sequence, which fill the interval evenly: the
shares hold to within a few rows in every stream and every batch, from any row on without state.
"""

from collections.abc import Sequence
from fractions import Fraction
from itertools import accumulate

import numpy as np

from recipes.data.config import DataConfig
from recipes.data.documents import Documents
from recipes.data.encoder import Encoder
from recipes.data.order import Order
from recipes.data.packing import Cursor, PackedSource, Row

# Times 2**64; sums wrap around, as points do.
_TURN_STEP = np.uint64(0xC13FA9A902A6328F)
_STREAM_STEP = np.uint64(0x91E10DA5C79E7B1C)


class PackedData:
    """The rows of one split."""

    def __init__(
        self,
        data: DataConfig,
        documents: Sequence[Documents],
        encoder: Encoder,
        *,
        seq_len: int,
        num_epochs: int,
        is_mixed: bool = True,
    ) -> None:
        """documents: of each source. num_epochs -1: without end. Not `is_mixed`: the one source
        there is, in the order of its files, as one stream."""
        assert is_mixed or len(documents) == 1
        self.num_streams = data.num_streams if is_mixed else 1
        self.seq_len = seq_len
        self.num_epochs = num_epochs
        self.sources = [
            PackedSource(
                source,
                encoder,
                Order(
                    len(source),
                    self.num_streams,
                    shuffle=data.shuffle and is_mixed,
                    buffer=data.shuffle_buffer,
                    seed=(data.seed, index),
                ),
                seq_len=seq_len,
                num_epochs=num_epochs,
                truncates=data.long_documents == "truncate",
                skips_bad=data.on_error == "skip",
            )
            for index, source in enumerate(documents)
        ]
        weights = [source.weight for source in data.sources] if is_mixed else [1.0]
        *ends, total = accumulate(map(Fraction, weights))
        self._ends = np.array([int(end / total * 2**64) for end in ends], np.uint64)

    def source_of(self, rows_N: np.ndarray) -> np.ndarray:
        """Which source each of these rows comes from, int64 [N]."""
        turn, stream = (part.astype(np.uint64) for part in np.divmod(rows_N, self.num_streams))
        point_N = turn * _TURN_STEP + stream * _STREAM_STEP
        return np.searchsorted(self._ends, point_N, side="right")

    def open_stream(self, index: int, row: int, cursors: Sequence[Cursor]) -> "Stream":
        """Stream `index` from row `row` of the data on; cursors: its place in each source."""
        return Stream(self, index, row, cursors)

    def count_rows(self) -> int:
        """How many rows there are before the first that is missing. Tokenizes every document.

        Asserts a finite num_epochs.
        """
        tokens_SJ = np.stack([source.count_tokens(self.num_streams) for source in self.sources])
        return min(
            stream + self.num_streams * self._count_turns(stream, tokens_SJ[:, stream])
            for stream in range(self.num_streams)
        )

    def _count_turns(self, stream: int, tokens_S: np.ndarray) -> int:
        """Rows of the stream before the first whose source has none left."""
        num_rows_S = tokens_S // self.seq_len
        turns = np.arange(num_rows_S.sum() + 1)  # so many rows no stream has
        source_of_turn = self.source_of(stream + self.num_streams * turns)
        missing = []
        for source, num_rows in enumerate(num_rows_S):
            turns_of_source = np.flatnonzero(source_of_turn == source)
            missing += turns_of_source[num_rows : num_rows + 1].tolist()
        return min(missing)


class Stream:
    """The rows of one stream, in order."""

    def __init__(self, data: PackedData, index: int, row: int, cursors: Sequence[Cursor]) -> None:
        self._data = data
        self._row = row
        self._parts = [
            source.open_stream(index, cursor)
            for source, cursor in zip(data.sources, cursors, strict=True)
        ]

    def next_row(self) -> tuple[int, Row | None]:
        """The row's source, and the row; None at the end of that source's stream.

        Raises ValueError as SourceStream does.
        """
        source = int(self._data.source_of(np.array([self._row]))[0])
        self._row += self._data.num_streams
        return source, self._parts[source].next_row()
