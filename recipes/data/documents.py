"""Documents by index: the records of JSONL, Parquet and text files, read when asked for.

A document has a stable name (`file`, or `file:line`) and a text. Imports no torch. Readers keep no
open file, so worker processes may share them.
"""

import functools
import json
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from recipes.data.config import DataConfig
from recipes.data.sources import SourceFile, find_files, is_validation

Split = Literal["train", "validation"]

_ROW_GROUP_CACHE = 8
"""Row groups held per process: a shuffle window (packing.SHUFFLE_WINDOW) and the next one."""


class Reader(Protocol):
    """The documents of one file, numbered from 0."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """The document's name, the same on every machine."""
        ...

    def text(self, index: int) -> str:
        """The document's text, possibly empty. Raises ValueError that names file and line."""
        ...

    def blocks(self) -> np.ndarray:
        """int64 [len(self)], non-decreasing from 0: documents that are read together share one."""
        ...


class TextReader:
    """A UTF-8 text file: one document."""

    def __init__(self, file: SourceFile) -> None:
        self.file = file

    def __len__(self) -> int:
        return 1

    def name(self, index: int) -> str:
        return self.file.name

    def text(self, index: int) -> str:
        try:
            return self.file.path.read_bytes().decode()
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{self.file.option}.path: {self.file.path} is not UTF-8 text "
                f"(byte {error.start}). Convert or exclude the file."
            ) from error

    def blocks(self) -> np.ndarray:
        return np.zeros(1, np.int64)


class JsonLinesReader:
    """A JSONL file: each line that is not blank is a document. Scans the file once for lines."""

    def __init__(self, file: SourceFile) -> None:
        self.file = file
        numbers, offsets, offset = array("q"), array("q"), 0
        with file.path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    numbers.append(number)
                    offsets.append(offset)
                offset += len(line)
        self._numbers, self._offsets = numbers, offsets
        if numbers:
            self.text(0)  # a wrong field name shows at once, not in the middle of a run

    def __len__(self) -> int:
        return len(self._offsets)

    def name(self, index: int) -> str:
        return f"{self.file.name}:{self._numbers[index]}"

    def text(self, index: int) -> str:
        # Opened anew each time: processes forked from one that holds it open share its position.
        with self.file.path.open("rb") as lines:
            lines.seek(self._offsets[index])
            line = lines.readline()
        where = f"{self.file.path}:{self._numbers[index]}"
        try:
            record = json.loads(line)
        except ValueError as error:  # also UnicodeDecodeError
            raise ValueError(
                f"{self.file.option}.path: {where} is not valid JSON ({error}). "
                "Correct or remove the line."
            ) from error
        if not isinstance(record, dict):
            raise ValueError(
                f"{self.file.option}.path: {where} is not a JSON object. "
                f'Write the line as {{"{self.file.text}": "..."}}.'
            )
        if self.file.text not in record:
            raise _missing_field(self.file, where, list(record))
        return _check_text(self.file, where, record[self.file.text])

    def blocks(self) -> np.ndarray:
        return np.arange(len(self), dtype=np.int64)


class ParquetReader:
    """A Parquet file: each row is a document. Reads the text column, one row group at a time."""

    def __init__(self, file: SourceFile) -> None:
        import pyarrow
        import pyarrow.parquet as pq

        self.file = file
        try:
            metadata = pq.read_metadata(file.path)
        except pyarrow.ArrowInvalid as error:
            raise ValueError(
                f"{file.option}.path: {file.path} is not a Parquet file. Rename or remove it."
            ) from error
        names = metadata.schema.to_arrow_schema().names
        if file.text not in names:
            raise _missing_field(file, str(file.path), names)
        groups = range(metadata.num_row_groups)
        self._rows = np.array([metadata.row_group(g).num_rows for g in groups], np.int64)
        self._ends = np.cumsum(self._rows)

    def __len__(self) -> int:
        return int(self._rows.sum())

    def name(self, index: int) -> str:
        return f"{self.file.name}:{index + 1}"

    def text(self, index: int) -> str:
        group = int(np.searchsorted(self._ends, index, side="right"))
        first = int(self._ends[group] - self._rows[group])
        value = _load_row_group(self.file.path, group, self.file.text)[index - first].as_py()
        return _check_text(self.file, f"{self.file.path}:{index + 1}", value)

    def blocks(self) -> np.ndarray:
        return np.repeat(np.arange(len(self._rows)), self._rows)


class Documents:
    """The documents of one split, numbered from 0 in the order of the sources."""

    def __init__(self, readers: list[Reader], ids_N: np.ndarray) -> None:
        """ids_N int64: which documents, of all that `readers` have together, ascending."""
        self._readers = readers
        self._starts = np.cumsum([0] + [len(reader) for reader in readers])
        self._ids_N = ids_N

    def __len__(self) -> int:
        return len(self._ids_N)

    def name(self, index: int) -> str:
        """The document's name, the same on every machine."""
        reader, local = self._locate(index)
        return reader.name(local)

    def text(self, index: int) -> str:
        """The document's text, possibly empty. Raises ValueError that names file and line."""
        reader, local = self._locate(index)
        return reader.text(local)

    def blocks(self) -> np.ndarray:
        """int64 [N], non-decreasing: documents that are read together (a row group) share one."""
        blocks, first = [np.zeros(0, np.int64)], 0
        for reader in self._readers:
            if len(reader):
                blocks.append(reader.blocks() + first)
                first = int(blocks[-1][-1]) + 1
        return np.concatenate(blocks)[self._ids_N]

    def _locate(self, index: int) -> tuple[Reader, int]:
        document = int(self._ids_N[index])
        reader = int(np.searchsorted(self._starts, document, side="right")) - 1
        return self._readers[reader], document - int(self._starts[reader])


def load_documents(data: DataConfig, split: Split) -> Documents:
    """Index the sources; texts are read later. Raises ValueError if the split is empty."""
    readers = [_load_reader(file) for file in find_files(data)]
    total, fraction = sum(map(len, readers)), data.validation_fraction
    if total == 0:
        raise ValueError("data.sources hold no documents: all files are empty. Name other files.")
    if fraction > 0:
        held_out = np.fromiter(
            (is_validation(r.name(i), fraction) for r in readers for i in range(len(r))),
            bool,
            total,
        )
    else:  # hashes millions of names for nothing otherwise
        held_out = np.zeros(total, bool)
    ids_N = np.flatnonzero(held_out if split == "validation" else ~held_out)
    if len(ids_N) == 0:
        remedy = "Raise" if split == "validation" else "Lower"
        raise ValueError(
            f"data.validation_fraction ({fraction}) leaves no document of {total} for {split}. "
            f"{remedy} it or add documents."
        )
    return Documents(readers, ids_N)


def _load_reader(file: SourceFile) -> Reader:
    readers: dict[str, Callable[[SourceFile], Reader]] = {
        ".jsonl": JsonLinesReader,
        ".parquet": ParquetReader,
    }
    return readers.get(file.path.suffix, TextReader)(file)


@functools.lru_cache(maxsize=_ROW_GROUP_CACHE)
def _load_row_group(path: Path, group: int, field: str) -> Any:
    """The column `field` of one row group, a pyarrow array."""
    import pyarrow.parquet as pq

    # Without threads: this also runs in forked workers, whose thread pools are gone.
    file = pq.ParquetFile(path, pre_buffer=False)
    return file.read_row_group(group, columns=[field], use_threads=False).column(field)


def _missing_field(file: SourceFile, where: str, fields: list[str]) -> ValueError:
    return ValueError(
        f"{file.option}.text ({file.text}) is not a field of {where}, which has: "
        f"{', '.join(fields) or 'none'}. Name the field that holds the text."
    )


def _check_text(file: SourceFile, where: str, value: object) -> str:
    """`value` if it is a string; null counts as an empty document. Raises ValueError."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(
            f"{file.option}.text ({file.text}) must be a field with strings, but {where} has "
            f"{type(value).__name__}. Name the field that holds the text."
        )
    return value
