"""The rows of one source: its documents, stream by stream, cut into rows of equal length.

Knows nothing of other sources, ranks, workers or batches. Imports no torch.

Shape suffixes: T = tokens of a document, L = sequence length, J = streams, 3 = input, position,
label.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import numpy as np

from recipes.data.documents import Documents
from recipes.data.encoder import Encoder
from recipes.data.order import Order
from recipes.data.records import BadDocumentError


class Cursor(NamedTuple):
    """Where a stream's next row begins."""

    epoch: int
    """From 0."""

    block: int
    """Which of the blocks that the stream reads in that epoch."""

    place: int
    """The document's place in the order of that block's documents."""

    offset: int
    """Input tokens of that document in earlier rows."""


START = Cursor(0, 0, 0, 0)

IGNORE_INDEX = -100
"""The label where nothing is predicted. As in nitp.objective, which imports torch."""

_EMPTY_EPOCHS = 8
"""So many in succession are no accident of the order: a stream of few documents may have one."""


@dataclass(slots=True)
class Row:
    """A row, and what came with it."""

    row_3L: np.ndarray
    """Inputs, positions and labels, int64."""

    cursor: Cursor
    """The stream's after this row."""

    documents: list[str]
    """Names of the documents that the row has tokens of."""

    num_skipped: int
    """Bad documents passed over since the stream's previous row."""

    complaint: str | None
    """What was wrong with the last of them."""


class _Tokens:
    """A document's tokens, read forward, as far as they are asked for."""

    def __init__(self, pieces: Iterator[np.ndarray], max_tokens: int | None) -> None:
        self._pieces, self._left = pieces, max_tokens
        self._ready = np.zeros(0, np.int64)

    def take(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The next inputs, at most `count`, and their labels; none at the end."""
        self._prepare(count + 1)
        count = min(count, max(len(self._ready) - 1, 0))
        inputs, labels = self._ready[:count], self._ready[1 : count + 1]
        self._ready = self._ready[count:]
        return inputs, labels

    @property
    def is_at_end(self) -> bool:
        """Whether no input is left."""
        self._prepare(2)
        return len(self._ready) < 2

    def count(self) -> int:
        """The number of inputs left, which it takes."""
        total = 0
        while not self.is_at_end:
            total += len(self.take(len(self._ready) - 1)[0])
        return total

    def _prepare(self, count: int) -> None:
        """Have so many tokens ready, if there are."""
        parts, num_ready = [self._ready], len(self._ready)
        while num_ready < count and self._left != 0:
            piece = next(self._pieces, None)
            if piece is None:
                break
            parts.append(piece[: self._left])
            num_ready += len(parts[-1])
            if self._left is not None:
                self._left -= len(parts[-1])
        self._ready = np.concatenate(parts) if len(parts) > 1 else self._ready


class PackedSource:
    """The rows of one source."""

    def __init__(
        self,
        documents: Documents,
        encoder: Encoder,
        order: Order,
        *,
        seq_len: int,
        num_epochs: int = -1,
        truncates: bool = False,
        skips_bad: bool = False,
        fills_last: bool = False,
    ) -> None:
        """num_epochs -1: without end. truncates: a document has at most seq_len input tokens.
        skips_bad: a bad document is passed over, not an error. fills_last: where the documents end
        within a row, it is filled up; else it is dropped."""
        self.documents, self.order = documents, order
        self.seq_len, self.num_epochs = seq_len, num_epochs
        self.skips_bad, self.fills_last = skips_bad, fills_last
        self._encoder = encoder
        self._max_tokens = seq_len + 1 if truncates else None

    def open_stream(self, stream: int, cursor: Cursor = START) -> "SourceStream":
        """The stream's rows from `cursor` on."""
        return SourceStream(self, stream, cursor)

    def build_filling(self, count: int) -> np.ndarray:
        """Input, position and label of tokens after which nothing is predicted, int64 [3, count]: a
        document of their own."""
        eos_N = np.full(count, self._encoder.eos_id)
        return np.stack([eos_N, np.arange(count), np.full(count, IGNORE_INDEX)])

    def open_document(self, block: int, raw: object) -> _Tokens | None:
        """A document's tokens; None if it is empty. Raises BadDocumentError."""
        value = self.documents.parse(block, raw)
        tokens = _Tokens(self._encoder.encode_pieces(value), self._max_tokens)
        return None if tokens.is_at_end else tokens

    def count_tokens(self, num_streams: int) -> np.ndarray:
        """Input tokens of each stream in all epochs, int64 [J]. Tokenizes every document once, and
        holds 8 bytes for each. Asserts a finite num_epochs."""
        assert self.num_epochs > 0, "data without end"
        order, documents = self.order, self.documents
        lengths = [
            np.array([self._count(block, *record) for record in documents.read(block)], np.int64)
            for block in range(len(documents))
        ]
        tokens_J = np.zeros(num_streams, np.int64)
        for epoch in range(self.num_epochs):
            for stream in range(num_streams):
                for position, block in enumerate(order.blocks_of(stream, epoch)):
                    for first in range(0, len(lengths[block]), order.buffer):
                        part = lengths[block][first : first + order.buffer]
                        _, visited = order.visit(stream, epoch, block, position, first, len(part))
                        tokens_J[stream] += part[visited].sum()
        return tokens_J

    def _count(self, block: int, key: int, raw: object) -> int:
        try:
            tokens = self.open_document(block, raw)
            return 0 if tokens is None else tokens.count()
        except BadDocumentError as error:
            if self.skips_bad:
                return 0
            raise self.documents.complain(block, key, error) from error


class SourceStream:
    """The rows of one stream, in order.

    Documents follow each other without padding. One that does not fit goes on in the next row,
    where its positions restart at 0, as attention cannot see the row before; the label at the cut
    is still its next token.
    """

    def __init__(self, source: PackedSource, stream: int, cursor: Cursor) -> None:
        self._source = source
        self._stream = stream
        self._cursor = cursor
        self._visits = self._visit(cursor)
        self._tokens: _Tokens | None = None  # of the document at the cursor
        self._name = ""
        self.num_skipped = 0
        """Bad documents passed over since the last row."""
        self.complaint: str | None = None
        """What was wrong with the last of them."""

    def next_row(self) -> Row | None:
        """None at the end, with the rest dropped or filled up.

        Raises ValueError for a bad document, unless skipped, and if the stream has no tokens.
        """
        length = self._source.seq_len
        row_3L, names, filled = np.empty((3, length), np.int64), [], 0
        while filled < length:
            if self._tokens is None:
                visit = next(self._visits, None)
                if visit is None:
                    if not (filled and self._source.fills_last):
                        return None
                    row_3L[:, filled:] = self._source.build_filling(length - filled)
                    break
                self._cursor, self._name, self._tokens = visit
                self._skip(self._tokens, self._cursor.offset)
            inputs, labels = self._tokens.take(length - filled)
            taken = len(inputs)
            row_3L[:, filled : filled + taken] = inputs, np.arange(taken), labels
            names.append(self._name)
            filled += taken
            self._cursor = self._cursor._replace(offset=self._cursor.offset + taken)
            if self._tokens.is_at_end:
                self._cursor = self._cursor._replace(place=self._cursor.place + 1, offset=0)
                self._tokens = None
        row = Row(row_3L, self._cursor, names, self.num_skipped, self.complaint)
        self.num_skipped, self.complaint = 0, None
        return row

    def _skip(self, tokens: _Tokens, count: int) -> None:
        """Take `count` inputs, a row's at a time."""
        for done in range(0, count, self._source.seq_len):
            tokens.take(min(self._source.seq_len, count - done))

    def _visit(self, start: Cursor) -> Iterator[tuple[Cursor, str, _Tokens]]:
        """From `start` on, each document that is not empty: cursor, name and tokens."""
        source, documents = self._source, self._source.documents
        epoch, position, place, _ = start
        last_epoch = epoch  # with a token
        while epoch != source.num_epochs:
            blocks = source.order.blocks_of(self._stream, epoch)
            while position < len(blocks):
                block = int(blocks[position])
                for cursor, key, raw in self._read(block, Cursor(epoch, position, place, 0)):
                    tokens = self._encode(block, key, raw)
                    if tokens is not None:
                        last_epoch = epoch
                        cursor = start if cursor[:3] == start[:3] else cursor
                        yield cursor, documents.name(block, key), tokens
                position, place = position + 1, 0
            if epoch - last_epoch == _EMPTY_EPOCHS:
                raise ValueError(
                    f"{documents.option}: stream {self._stream} finds no document with tokens in "
                    f"{_EMPTY_EPOCHS} epochs. Remove empty documents or lower data.num_streams."
                )
            epoch, position = epoch + 1, 0

    def _read(self, block: int, start: Cursor) -> Iterator[tuple[Cursor, int, object]]:
        """The stream's documents of a block from `start` on: cursor, key, not yet parsed."""
        order = self._source.order
        first = start.place - start.place % order.buffer
        records = islice(self._source.documents.read(block), first, None)
        while window := list(islice(records, order.buffer)):
            visits = order.visit(self._stream, start.epoch, block, start.block, first, len(window))
            for place, index in zip(*visits, strict=True):
                if place >= start.place:
                    yield start._replace(place=int(place)), *window[index]
            first += len(window)

    def _encode(self, block: int, key: int, raw: object) -> _Tokens | None:
        """The document's tokens; None if it is empty, or, counted, bad and to be skipped."""
        documents = self._source.documents
        try:
            return self._source.open_document(block, raw)
        except BadDocumentError as error:
            if not self._source.skips_bad:
                raise documents.complain(block, key, error) from error
            self.num_skipped += 1
            self.complaint = error.at(documents.name(block, key))
            return None
