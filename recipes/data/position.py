"""How far a run is in its data: what the checkpoint holds of the loader."""

import zlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from recipes.data.packing import START, Cursor, Row

_SKIPPED = len(START)
"""Where an entry of a stream's state counts bad documents; before it, the cursor."""


class Position:
    """Rows served, tokens of each source, and where each of this rank's streams goes on."""

    def __init__(
        self, streams: Iterable[int], num_sources: int, order: dict[str, int | str]
    ) -> None:
        """order: what the cursors refer to, each by the name of its option."""
        self.rows = 0
        """That all ranks have been served together."""
        self.tokens = np.zeros(num_sources, np.int64)
        """Of each source, in those rows, of all ranks."""
        self._order = order
        self._streams = {j: np.zeros((num_sources, _SKIPPED + 1), np.int64) for j in streams}

    @property
    def cursors(self) -> dict[int, list[Cursor]]:
        """Of each of this rank's streams, its cursor in each source."""
        return {
            stream: [Cursor(*entry[:_SKIPPED]) for entry in entries.tolist()]
            for stream, entries in self._streams.items()
        }

    @property
    def num_skipped(self) -> np.ndarray:
        """Bad documents of each source that this rank's streams passed over, int64."""
        return np.sum([entries[:, _SKIPPED] for entries in self._streams.values()], axis=0)

    def advance(self, stream: int, source: int, row: Row) -> None:
        """Pass `row`, the next of the stream, which comes from `source`."""
        entry = self._streams[stream][source]
        entry[:_SKIPPED] = row.cursor
        entry[_SKIPPED] += row.num_skipped

    def count(self, sources_N: np.ndarray, seq_len: int) -> None:
        """Add rows, served to all ranks together, each of one of `sources_N`."""
        self.rows += len(sources_N)
        self.tokens += seq_len * np.bincount(sources_N, minlength=len(self.tokens))

    def state_dict(self) -> dict[str, Any]:
        """int64 tensors. Each rank has the keys of its own streams; all names are global, so
        another number of ranks can load them.

            rows          [1]     rows that all ranks have been served together
            tokens        [N]     of each source in those rows
            order         [8]     what the cursors refer to
            stream_<j>    [N, 5]  of each source: epoch, block, place and offset where the next
                                  row of stream j begins (packing.Cursor), and documents skipped
        """
        state = {
            "rows": torch.tensor([self.rows]),
            "tokens": torch.tensor(self.tokens),
            "order": torch.tensor([*map(_as_int, self._order.values())]),
        }
        for stream, entries in self._streams.items():
            state[f"stream_{stream}"] = torch.tensor(entries)
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there. Raises ValueError if it belongs to another document order."""
        saved_order = state_dict["order"].tolist()
        for (name, value), saved in zip(self._order.items(), saved_order, strict=True):
            if saved != _as_int(value):
                was = f" ({saved})" if isinstance(value, int) else ""
                raise ValueError(
                    f"{name} ({value}) differs from the checkpoint's{was}, so the position in the "
                    "data is lost. Restore it, or start the data anew with "
                    'checkpoint.exclude_from_loading = ["dataloader"].'
                )
        self.rows = int(state_dict["rows"])
        self.tokens = state_dict["tokens"].numpy().copy()
        for stream in self._streams:
            self._streams[stream] = state_dict[f"stream_{stream}"].numpy().copy()


def _as_int(value: int | str) -> int:
    return value if isinstance(value, int) else zlib.crc32(value.encode())
