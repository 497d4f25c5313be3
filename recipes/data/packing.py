"""The packed data: row i as a function of documents, order, sequence length and stream count.

    documents of stream j in an epoch   order[j], order[j + S], order[j + 2S], ...   (S streams)
    row i of the data                   row i // S of stream i % S

Knows nothing of ranks, workers or batches; the loader chooses rows. Imports no torch.

Shape suffixes: N = documents of the split, T = tokens of a document, L = sequence length,
3 = input, position, label.
"""

from typing import NamedTuple, Protocol

import numpy as np

SHUFFLE_WINDOW = 4
"""Blocks (Parquet row groups) whose documents are shuffled together. A shuffle over all of them
would read a whole row group for each document."""


class DocumentSource(Protocol):
    """What packing asks of documents; `documents.Documents` has it."""

    def __len__(self) -> int: ...

    def text(self, index: int) -> str: ...

    def blocks(self) -> np.ndarray: ...


class TextTokenizer(Protocol):
    """What packing asks of a tokenizer; TorchTitan's HuggingFaceTokenizer has it."""

    eos_id: int | None

    def encode(self, text: str, *, add_bos: bool, add_eos: bool) -> list[int]: ...


class Cursor(NamedTuple):
    """Where a stream's next row begins."""

    epoch: int
    """From 0."""

    document: int
    """Which of the stream's documents in that epoch; their number: the epoch is over."""

    offset: int
    """Input tokens of that document in earlier rows."""


START = Cursor(0, 0, 0)


class PackedData:
    """The rows of one split.

    Raises ValueError if the tokenizer has no EOS or there are fewer documents than streams.
    """

    def __init__(
        self,
        documents: DocumentSource,
        tokenizer: TextTokenizer,
        *,
        seq_len: int,
        num_streams: int,
        num_epochs: int = -1,
        shuffle: bool = True,
        seed: int = 0,
    ) -> None:
        """num_epochs -1: without end."""
        if tokenizer.eos_id is None:
            raise ValueError(
                "tokenizer.path: the tokenizer has no EOS, the label of each document's last "
                'token. Add "eos_token" to its tokenizer_config.json.'
            )
        if len(documents) < num_streams:
            raise ValueError(
                f"data.num_streams ({num_streams}) must be at most the number of documents "
                f"({len(documents)}). Lower it or add documents."
            )
        self.seq_len = seq_len
        self.num_streams = num_streams
        self.num_epochs = num_epochs
        self._documents = documents
        self._tokenizer = tokenizer
        self._shuffle = shuffle
        self._seed = seed
        self._blocks_N = documents.blocks()
        self._orders: dict[int, np.ndarray] = {}

    def compute_order(self, epoch: int) -> np.ndarray:
        """The documents in the order of `epoch`, a permutation, int64 [N].

        Shuffled: blocks come in random order; each run of SHUFFLE_WINDOW blocks is one window, in
        which documents come in random order. With blocks of one document, uniform.
        """
        if epoch not in self._orders:
            # Streams of different length are at most about one epoch apart.
            self._orders = {e: order for e, order in self._orders.items() if e == epoch - 1}
            order = np.arange(len(self._documents))
            if self._shuffle:
                # RandomState, not Generator: its numbers are the same in every numpy release.
                random = np.random.RandomState([self._seed, epoch])
                rank = random.permutation(int(self._blocks_N[-1]) + 1)
                window_N = rank[self._blocks_N] // SHUFFLE_WINDOW
                order = np.lexsort((random.permutation(len(order)), window_N))
            self._orders[epoch] = order
        return self._orders[epoch]

    def compute_tokens(self, document: int) -> np.ndarray:
        """The document's tokens and EOS, int64 [T + 1]; [1] if it is empty.

        The document's own tokens hold EOS only where its text spells it.
        """
        text = self._documents.text(document)
        tokens = self._tokenizer.encode(text, add_bos=False, add_eos=False) if text else []
        eos = self._tokenizer.eos_id
        assert eos is not None, "checked at construction"
        if not tokens or tokens[-1] != eos:  # some tokenizers append EOS unasked
            tokens.append(eos)
        return np.array(tokens, np.int64)

    def open_stream(self, index: int, cursor: Cursor = START) -> "Stream":
        """Stream `index`, whose next row begins at `cursor`."""
        return Stream(self, index, cursor)

    def count_rows(self) -> int:
        """How many rows there are before the first that is missing. Tokenizes every document.

        Asserts a finite num_epochs.
        """
        assert self.num_epochs > 0, "data without end"
        num_documents = len(self._documents)
        lengths_N = np.array([len(self.compute_tokens(d)) - 1 for d in range(num_documents)])
        tokens = np.zeros(self.num_streams, np.int64)
        for epoch in range(self.num_epochs):
            order = self.compute_order(epoch)
            for stream in range(self.num_streams):
                tokens[stream] += lengths_N[order[stream :: self.num_streams]].sum()
        return int((tokens // self.seq_len * self.num_streams + np.arange(self.num_streams)).min())


class Stream:
    """The rows of one stream, in order.

    Documents follow each other without padding. One that does not fit goes on in the next row,
    where its positions restart at 0, as attention cannot see the row before; the label at the cut
    is still its next token.
    """

    def __init__(self, data: PackedData, index: int, cursor: Cursor) -> None:
        self.cursor = cursor
        """Where the next row begins."""
        self._data = data
        self._index = index
        self._epoch = -1
        self._documents = np.zeros(0, np.int64)  # the stream's own, in the order of that epoch
        self._tokens: np.ndarray | None = None  # of the document at the cursor
        self._empty_run = 0

    def next_row(self) -> np.ndarray | None:
        """Inputs, positions and labels, int64 [3, L]; None at the end, with the rest dropped.

        Raises ValueError if as many documents in succession as the stream has are empty.
        """
        length = self._data.seq_len
        row_3L = np.empty((3, length), np.int64)
        filled = 0
        while filled < length:
            epoch, index, offset = self.cursor
            if epoch == self._data.num_epochs:
                return None
            if epoch != self._epoch:
                order = self._data.compute_order(epoch)
                self._documents = order[self._index :: self._data.num_streams].copy()
                self._epoch = epoch
            if index == len(self._documents):
                self.cursor = Cursor(epoch + 1, 0, 0)
                continue
            if self._tokens is None:
                self._tokens = self._data.compute_tokens(int(self._documents[index]))
                self._guard_against_emptiness()
            tokens = self._tokens
            taken = min(length - filled, len(tokens) - 1 - offset)
            segment = slice(filled, filled + taken)
            row_3L[0, segment] = tokens[offset : offset + taken]
            row_3L[1, segment] = np.arange(taken)
            row_3L[2, segment] = tokens[offset + 1 : offset + 1 + taken]
            filled += taken
            self.cursor = Cursor(epoch, index, offset + taken)
            if self.cursor.offset == len(tokens) - 1:
                self.cursor = Cursor(epoch, index + 1, 0)
                self._tokens = None
        return row_3L

    def _guard_against_emptiness(self) -> None:
        assert self._tokens is not None
        num_documents = len(self._documents)
        self._empty_run = self._empty_run + 1 if len(self._tokens) == 1 else 0
        if self._empty_run >= num_documents:
            raise ValueError(
                f"data.sources: all {num_documents} documents of a stream are empty. Remove empty "
                f"documents or lower data.num_streams ({self._data.num_streams})."
            )
