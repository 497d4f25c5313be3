"""Packed rows as TorchTitan's dataloader: which rank serves which rows, and where to resume.

Rank r of R serves rows r, r + R, r + 2R, ... of the packed data, so the rows of a global batch do
not depend on R. Each row travels with the cursor of its stream after it; the state is the last
cursors of each stream among the batches handed out, whatever the workers have read ahead.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info
from torchdata.stateful_dataloader import StatefulDataLoader
from torchtitan.components.dataloader import BaseDataLoader
from torchtitan.components.tokenizer import HuggingFaceTokenizer
from torchtitan.tools.logging import logger

from recipes.data.config import DataConfig, source_names
from recipes.data.documents import Split, compute_fingerprint, load_documents
from recipes.data.encoder import Encoder
from recipes.data.mixture import PackedData
from recipes.data.packing import Row
from recipes.data.position import Position
from recipes.data.unigram import UnigramBaseline
from recipes.stop import survive_signals

_BATCHES_AHEAD = 2
_BATCHES_REMEMBERED = 256


@dataclass(slots=True)
class _StreamRow:
    stream: int
    source: int
    row: Row


class PackedDataLoader(BaseDataLoader):
    """Batches ({"input", "positions"}, labels), each int64 [B, L], of this rank's rows.

    With a finite number of epochs all ranks stop after the last global batch that is complete.
    Validation reads its split in file order, source after source, from the start at each `iter`,
    and has no state; every rank packs all of it, so that no row is lost to the division into
    streams.

    Raises ValueError if the data-parallel degree does not divide data.num_streams, a source or the
    tokenizer cannot be used, the split has too few documents or, at `iter`, too few tokens for one
    global batch.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(BaseDataLoader.Config):
        data: DataConfig = field(default_factory=DataConfig)
        """The `[data]` table."""

        split: Split = "train"
        """train, or the documents held out by data.validation_fraction."""

        infinite: bool = True
        """Validation: whether to begin again at the end. Training goes by data.num_epochs."""

    def __init__(
        self,
        config: Config,
        *,
        dp_world_size: int,
        dp_rank: int,
        tokenizer: HuggingFaceTokenizer,
        seq_len: int,
        local_batch_size: int,
        snapshot_every_n_steps: int | None = None,
    ) -> None:
        """snapshot_every_n_steps: TorchTitan passes it; here the state is exact at every batch."""
        data = config.data
        self._is_training = config.split == "train"
        if self._is_training and data.num_streams % dp_world_size:
            raise ValueError(
                f"data.num_streams ({data.num_streams}) must be a multiple of the data-parallel "
                f"degree ({dp_world_size}). Set a multiple, in a new run, or another degree."
            )
        documents = load_documents(data, config.split)
        encoder = Encoder(tokenizer, data.bos)
        if self._is_training:
            num_epochs = data.num_epochs
            bos = "begins with BOS" if encoder.adds_bos else "has no BOS"
            logger.info(f"Data: each document {bos} and ends with EOS ({encoder.eos_token})")
        else:
            num_epochs = -1 if config.infinite else 1
        self._packed = PackedData(
            data,
            documents,
            encoder,
            seq_len=seq_len,
            num_epochs=num_epochs,
            is_mixed=self._is_training,
        )
        self._data = data
        self._fingerprint = compute_fingerprint(data, documents) if self._is_training else ""
        self._rank = dp_rank
        self._num_ranks = dp_world_size
        self._batch_size = local_batch_size
        self._position = self._start()
        self._recent: deque[list[str]] = deque(maxlen=_BATCHES_REMEMBERED)
        self.unigram = UnigramBaseline(encoder.num_ids)
        """Of the labels that this process hands out."""

    def __iter__(self) -> Iterator[tuple[dict[str, torch.Tensor], torch.Tensor]]:
        if not self._is_training:
            self._position = self._start()
        num_workers = self._data.num_workers
        end = self._compute_end() if self.has_end else None
        engine = StatefulDataLoader(
            _RankRows(self._packed, self._position, end, self._rank, self._num_ranks),
            batch_size=None,  # rows: a worker that owns whole streams tokenizes nothing in vain
            collate_fn=_identity,
            worker_init_fn=survive_signals,
            num_workers=num_workers,
            prefetch_factor=-(-_BATCHES_AHEAD * self._batch_size // num_workers)
            if num_workers
            else None,
            snapshot_every_n_steps=None,  # its snapshots are per worker; ours travel with rows
            generator=torch.Generator(),  # an iterator must not advance the global one
        )
        batch: list[_StreamRow] = []
        for item in engine:
            if isinstance(item, ValueError):
                raise item
            batch.append(item)
            if len(batch) == self._batch_size:
                self._hand_out(batch)
                rows_3BL = np.stack([i.row.row_3L for i in batch], axis=1)
                self.unigram.add(rows_3BL[2])
                input_BL, positions_BL, labels_BL = torch.from_numpy(rows_3BL).unbind()
                yield {"input": input_BL, "positions": positions_BL}, labels_BL
                batch = []
        assert not batch, "the rows of a rank are whole batches"

    def state_dict(self) -> dict[str, Any]:
        """As `Position.state_dict`; nothing for validation."""
        return self._position.state_dict() if self._is_training else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue at the state, from the next `iter` on.

        Raises ValueError if it belongs to another document order, or the ranks cannot share the
        rows that follow.
        """
        if not state_dict:  # a checkpoint without the loader's state
            return
        rows = int(state_dict["rows"])
        if rows % self._num_ranks:
            raise ValueError(
                f"The checkpoint's {rows} rows are no multiple of the data-parallel degree "
                f"({self._num_ranks}). Keep the global batch size and a degree that divides it."
            )
        self._position.load_state_dict(state_dict)

    @property
    def has_end(self) -> bool:
        """Whether the data run out."""
        return self._packed.num_epochs != -1

    @property
    def num_rows(self) -> int:
        """Rows handed out to all ranks, those of earlier sessions included."""
        return self._position.rows

    @property
    def skips_bad(self) -> bool:
        """Whether bad documents are passed over and counted."""
        return self._data.on_error == "skip"

    @property
    def num_tokens(self) -> dict[str, int]:
        """By the name of each source, its tokens in the batches handed out to all ranks, those of
        earlier sessions included."""
        return self._by_name(self._position.tokens)

    @property
    def num_skipped(self) -> dict[str, int]:
        """By the name of each source, its bad documents that this rank's streams passed over, those
        of earlier sessions included. The data-parallel ranks' sum is that of all."""
        return self._by_name(self._position.num_skipped)

    def recent_documents(self, num_batches: int) -> list[list[str]]:
        """Names of the documents in each of the last batches handed out, the latest last; it
        remembers 256 batches."""
        return list(self._recent)[-num_batches:]

    def _by_name(self, counts: np.ndarray) -> dict[str, int]:
        return dict(zip(source_names(self._data), counts.tolist(), strict=True))

    def _start(self) -> Position:
        data = self._data
        streams = range(self._rank, data.num_streams, self._num_ranks)
        order: dict[str, int | str] = {
            "data.num_streams": data.num_streams,
            "data.seed": data.seed,
            "data.shuffle": int(data.shuffle),
            "data.shuffle_buffer": data.shuffle_buffer,
            "data.validation_fraction": str(data.validation_fraction),
            "data.bos": data.bos,
            "data.long_documents": data.long_documents,
            "data.sources": f"fingerprint {self._fingerprint}",
        }
        num_sources = len(self._packed.sources)
        return Position(streams if self._is_training else [0], num_sources, order)

    def _hand_out(self, batch: list[_StreamRow]) -> None:
        """Note what leaves with this batch, the same moment on every rank."""
        self._recent.append([name for item in batch for name in item.row.documents])
        for item in batch:
            if item.row.num_skipped:
                self._warn_of_skipped(item)
            self._position.advance(item.stream, item.source, item.row)
        rows = self._position.rows
        rows_N = np.arange(rows, rows + self._batch_size * self._num_ranks)
        self._position.count(self._packed.source_of(rows_N), self._packed.seq_len)

    def _warn_of_skipped(self, item: _StreamRow) -> None:
        """At the 1st, 2nd, 4th, 8th, ... of this rank and source: a bad file has millions."""
        before = int(self._position.num_skipped[item.source])
        count = before + item.row.num_skipped
        if count.bit_length() > before.bit_length():
            logger.warning(f"Skipped {count} bad documents so far. The last: {item.row.complaint}")

    def _compute_end(self) -> int:
        """The row before which the last complete global batch ends; the same on each rank."""
        rows, global_batch = self._position.rows, self._batch_size * self._num_ranks
        logger.info("Counting the tokens of all documents to find where the data end")
        total = self._packed.count_rows()
        if total < global_batch:
            raise ValueError(
                f"data.sources give {total} rows of {self._packed.seq_len} tokens, less than one "
                f"global batch ({global_batch}). Add documents, or lower training.seq_len, the "
                "batch size or data.num_streams."
            )
        return rows + max(total - rows, 0) // global_batch * global_batch


class _RankRows(IterableDataset):
    """A rank's rows in order; worker w of W yields every W-th, as the engine takes them in turn.

    Streams that another worker or rank serves as well are packed and the other rows dropped.
    """

    def __init__(
        self, packed: PackedData, position: Position, end: int | None, rank: int, num_ranks: int
    ) -> None:
        self._packed = packed
        self._start, self._cursors = position.rows, position.cursors
        self._end = end
        self._rank, self._num_ranks = rank, num_ranks

    def __iter__(self) -> Iterator[_StreamRow | ValueError]:
        """Rows without end, or before `end`. A user's mistake is yielded, not raised: the engine
        would wrap a worker's exception in its traceback."""
        info = get_worker_info()
        worker, num_workers = (info.id, info.num_workers) if info else (0, 1)
        num_streams = self._packed.num_streams
        upcoming = {j: self._start + (j - self._start) % num_streams for j in self._cursors}
        streams = {
            j: self._packed.open_stream(j, upcoming[j], cursors)
            for j, cursors in self._cursors.items()
        }
        row_number = self._start + self._rank + self._num_ranks * worker
        try:
            while self._end is None or row_number < self._end:
                j = row_number % num_streams
                while upcoming[j] <= row_number:
                    source, row = streams[j].next_row()
                    upcoming[j] += num_streams
                assert row is not None, f"row {row_number} of {self._end} is missing"
                yield _StreamRow(j, source, row)
                row_number += self._num_ranks * num_workers
        except ValueError as error:
            yield error


def _identity(item: _StreamRow | ValueError) -> _StreamRow | ValueError:
    return item
