"""Packed rows as TorchTitan's dataloader: which rank serves which rows, and where to resume.

Rank r of R serves rows r, r + R, r + 2R, ... of the packed data, so the rows of a global batch do
not depend on R. Each row travels with the cursor of its stream after it; the state is the last
cursor of each stream among the batches handed out, whatever the workers have read ahead.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info
from torchdata.stateful_dataloader import StatefulDataLoader
from torchtitan.components.dataloader import BaseDataLoader
from torchtitan.components.tokenizer import BaseTokenizer
from torchtitan.tools.logging import logger

from recipes.data.config import DataConfig
from recipes.data.documents import Split, load_documents
from recipes.data.packing import START, Cursor, PackedData

_BATCHES_AHEAD = 2


@dataclass(slots=True)
class _Row:
    row_3L: np.ndarray
    stream: int
    cursor: Cursor
    """The stream's after this row."""


class PackedDataLoader(BaseDataLoader):
    """Batches ({"input", "positions"}, labels), each int64 [B, L], of this rank's rows.

    With a finite number of epochs all ranks stop after the last global batch that is complete.
    Validation reads its split in file order, from the start at each `iter`, and has no state; every
    rank packs all of it, so that no row is lost to the division into streams.

    Raises ValueError if the data-parallel degree does not divide data.num_streams, the split has
    too few documents or, at `iter`, too few tokens for one global batch.
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
        tokenizer: BaseTokenizer,
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
        self._documents = load_documents(data, config.split)
        self._packed = PackedData(
            self._documents,
            tokenizer,
            seq_len=seq_len,
            num_streams=data.num_streams if self._is_training else 1,
            num_epochs=data.num_epochs if self._is_training else (-1 if config.infinite else 1),
            shuffle=data.shuffle and self._is_training,
            seed=data.seed,
        )
        self._data = data
        self._rank = dp_rank
        self._num_ranks = dp_world_size
        self._batch_size = local_batch_size
        self._rows = 0
        self._cursors = dict.fromkeys(
            range(dp_rank, data.num_streams, dp_world_size) if self._is_training else [0], START
        )

    def __iter__(self) -> Iterator[tuple[dict[str, torch.Tensor], torch.Tensor]]:
        num_workers = self._data.num_workers
        global_batch = self._batch_size * self._num_ranks
        end = None if self._packed.num_epochs == -1 else self._compute_end(global_batch)
        engine = StatefulDataLoader(
            _RankRows(self._packed, self._cursors, self._rows, end, self._rank, self._num_ranks),
            batch_size=None,  # rows: a worker that owns whole streams tokenizes nothing in vain
            collate_fn=_identity,
            num_workers=num_workers,
            prefetch_factor=-(-_BATCHES_AHEAD * self._batch_size // num_workers)
            if num_workers
            else None,
            snapshot_every_n_steps=None,  # its snapshots are per worker; ours travel with rows
            generator=torch.Generator(),  # an iterator must not advance the global one
        )
        batch: list[_Row] = []
        for row in engine:
            if isinstance(row, ValueError):
                raise row
            batch.append(row)
            if len(batch) == self._batch_size:
                if self._is_training:
                    self._rows += global_batch
                    self._cursors.update((row.stream, row.cursor) for row in batch)
                batch_3BL = torch.from_numpy(np.stack([row.row_3L for row in batch], axis=1))
                input_BL, positions_BL, labels_BL = batch_3BL.unbind()
                yield {"input": input_BL, "positions": positions_BL}, labels_BL
                batch = []
        assert not batch, "the rows of a rank are whole batches"

    def state_dict(self) -> dict[str, Any]:
        """Position in the data, int64 tensors. Each rank has the keys of its own streams; all
        names are global, so another number of ranks can load them.

            rows          [1]  rows that all ranks have consumed together
            order         [4]  what the cursors refer to: num_streams, seed, shuffle, documents
            stream_<j>    [3]  epoch, document, token: where the next row of stream j begins
        """
        if not self._is_training:
            return {}
        state = {"rows": torch.tensor([self._rows]), "order": torch.tensor(self._order())}
        for stream, cursor in self._cursors.items():
            state[f"stream_{stream}"] = torch.tensor(cursor)
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue at the state, from the next `iter` on.

        Raises ValueError if it belongs to another document order, or the ranks cannot share the
        rows that follow.
        """
        if not state_dict:  # a checkpoint without the loader's state
            return
        names = ("data.num_streams", "data.seed", "data.shuffle", "number of training documents")
        for name, saved, value in zip(
            names, state_dict["order"].tolist(), self._order(), strict=True
        ):
            if saved != value:
                raise ValueError(
                    f"{name} ({value}) differs from the checkpoint's ({saved}), so the position in "
                    "the data is lost. Restore it, or start the data anew with "
                    'checkpoint.exclude_from_loading = ["dataloader"].'
                )
        rows = int(state_dict["rows"])
        if rows % self._num_ranks:
            raise ValueError(
                f"The checkpoint's {rows} rows are no multiple of the data-parallel degree "
                f"({self._num_ranks}). Keep the global batch size and a degree that divides it."
            )
        self._rows = rows
        self._cursors = {
            stream: Cursor(*state_dict[f"stream_{stream}"].tolist()) for stream in self._cursors
        }

    def _order(self) -> list[int]:
        data = self._data
        return [data.num_streams, data.seed, int(data.shuffle), len(self._documents)]

    def _compute_end(self, global_batch: int) -> int:
        """The row before which the last complete global batch ends; the same on each rank."""
        logger.info(f"Counting the tokens of {len(self._documents)} documents to find their end")
        total = self._packed.count_rows()
        if total < global_batch:
            raise ValueError(
                f"data.sources ({len(self._documents)} documents) give {total} rows of "
                f"{self._packed.seq_len} tokens, less than one global batch ({global_batch}). Add "
                "documents, or lower training.seq_len, the batch size or data.num_streams."
            )
        return self._rows + max(total - self._rows, 0) // global_batch * global_batch


class _RankRows(IterableDataset):
    """A rank's rows in order; worker w of W yields every W-th, as the engine takes them in turn.

    Streams that another worker or rank serves as well are packed and the other rows dropped.
    """

    def __init__(
        self,
        packed: PackedData,
        cursors: dict[int, Cursor],
        start: int,
        end: int | None,
        rank: int,
        num_ranks: int,
    ) -> None:
        """cursors: where the next row of each stream begins, when `start` is the next row."""
        self._packed = packed
        self._cursors = dict(cursors)
        self._start, self._end = start, end
        self._rank, self._num_ranks = rank, num_ranks

    def __iter__(self) -> Iterator[_Row | ValueError]:
        """Rows without end, or before `end`. A user's mistake is yielded, not raised: the engine
        would wrap a worker's exception in its traceback."""
        info = get_worker_info()
        worker, num_workers = (info.id, info.num_workers) if info else (0, 1)
        num_streams = self._packed.num_streams
        streams = {j: self._packed.open_stream(j, cursor) for j, cursor in self._cursors.items()}
        upcoming = {j: self._start + (j - self._start) % num_streams for j in streams}
        row_number = self._start + self._rank + self._num_ranks * worker
        try:
            while self._end is None or row_number < self._end:
                j = row_number % num_streams
                while upcoming[j] <= row_number:
                    row_3L = streams[j].next_row()
                    upcoming[j] += num_streams
                assert row_3L is not None, f"row {row_number} of {self._end} is missing"
                yield _Row(row_3L, j, streams[j].cursor)
                row_number += self._num_ranks * num_workers
        except ValueError as error:
            yield error


def _identity(row: _Row) -> _Row:
    return row
