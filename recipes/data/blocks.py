"""Blocks: runs of documents that are read forward, out of files.

    plain text      the file, one document
    JSON lines      those that begin in a range of bytes; a compressed file in one block
    CSV, TSV        the file (tables.py)
    Parquet         a row group

A block knows where it lies and nothing of the documents in it, so the index of any amount of data
is small and needs no pass over them. It keeps no open file: worker processes may share it.
Imports no torch.
"""

import io
import lzma
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from recipes.data.endings import read_ending
from recipes.data.records import PLACE, BadDocumentError, Field, Value
from recipes.data.sources import SourceFile

_BUFFER_BYTES = 2**16
_BATCH_ROWS = 256
_BLOCKS_PER_STREAM = 64


class Block(Protocol):
    """Documents that are read forward, each under a key that ascends."""

    def read(self) -> Iterator[tuple[int, Any]]:
        """(key, document not yet parsed) of each; a BadDocumentError stands for a damaged rest.
        Skipping documents is cheap. Raises OSError if the medium fails."""
        ...

    def parse(self, raw: Any) -> Value:
        """The document, as `read` yields it. Raises BadDocumentError."""
        ...

    def name(self, key: int) -> str:
        """The document's name, the same on every machine."""
        ...

    def locate(self, key: int) -> str:
        """Where the document lies on this machine, for people: file and line or row."""
        ...


@dataclass(slots=True, frozen=True)
class FileBlock:
    """Documents with a number each, `file:number`."""

    file: SourceFile

    def name(self, key: int) -> str:
        return f"{self.file.name}:{key}"

    def locate(self, key: int) -> str:
        return f"{self.file.path}:{key}"


@dataclass(slots=True, frozen=True)
class _WholeFileBlock:
    file: SourceFile

    def name(self, key: int) -> str:
        return self.file.name

    def locate(self, key: int) -> str:
        return str(self.file.path)


@dataclass(slots=True, frozen=True)
class TextBlock(_WholeFileBlock):
    """A UTF-8 text file: one document, `file`."""

    def read(self) -> Iterator[tuple[int, None]]:
        yield 0, None  # read when parsed: a document of another stream costs nothing

    def parse(self, raw: None) -> str:
        with open_file(self.file) as stream:
            content = stream.read()
        try:
            return content.decode()
        except UnicodeDecodeError as error:
            raise BadDocumentError(
                f"{self.file.option}.path: {PLACE} is not UTF-8 text (byte {error.start}). "
                "Convert or exclude the file."
            ) from error


@dataclass(slots=True, frozen=True)
class BadBlock(_WholeFileBlock):
    """In place of the documents of a file that cannot be used at all."""

    error: BadDocumentError

    def read(self) -> Iterator[tuple[int, BadDocumentError]]:
        yield 0, self.error

    def parse(self, raw: Any) -> Value:
        raise AssertionError("all that it has is bad")


@dataclass(slots=True, frozen=True)
class LinesBlock(FileBlock):
    """The JSON lines that begin in bytes begin..end of a plain file; each that is not blank is a
    document, `file@byte`."""

    field: Field
    begin: int
    end: int

    def read(self) -> Iterator[tuple[int, bytes]]:
        # Not more than the block: it is read ahead, in vain at the block's end.
        buffer_bytes = min(_BUFFER_BYTES, self.end - self.begin + 1)
        with self.file.path.open("rb", buffer_bytes) as stream:
            offset = max(self.begin - 1, 0)
            stream.seek(offset)
            if self.begin > 0:
                # The end of a line that begins before; where that is beyond the block, no further:
                # a line of many blocks would be read by each of them.
                offset += len(stream.readline(self.end - offset))
            while offset < self.end and (line := stream.readline()):
                if line.strip():
                    yield offset, line
                offset += len(line)

    def parse(self, raw: bytes) -> Value:
        return self.field.parse_line(raw)

    def name(self, key: int) -> str:
        return f"{self.file.name}@{key}"

    def locate(self, key: int) -> str:
        number, left = 1, key
        with self.file.path.open("rb") as stream:
            while left > 0 and (part := stream.read(min(left, 2**20))):
                number += part.count(b"\n")
                left -= len(part)
        return f"{self.file.path}:{number}"


@dataclass(slots=True, frozen=True)
class CompressedLinesBlock(FileBlock):
    """A compressed file of JSON lines; each that is not blank is a document, `file:line`."""

    field: Field

    def read(self) -> Iterator[tuple[int, bytes | BadDocumentError]]:
        number = num_documents = 0
        try:
            with open_file(self.file) as stream:
                for number, line in enumerate(stream, 1):
                    if line.strip():
                        num_documents += 1
                        yield number, line
            if num_documents == 0:
                raise empty_file(self.file)
        except BadDocumentError as error:
            yield number + 1, error

    def parse(self, raw: bytes) -> Value:
        return self.field.parse_line(raw)


@dataclass(slots=True, frozen=True)
class RowGroupBlock(FileBlock):
    """A row group of a Parquet file, decoded _BATCH_ROWS at a time; each row is a document,
    `file:row`."""

    field: Field
    group: int
    first_row: int
    """Counted from 1 through the file."""

    def read(self) -> Iterator[tuple[int, Any]]:
        import pyarrow.parquet as pq

        row = self.first_row
        try:
            with (
                _complaining_about(self.file),
                pq.ParquetFile(self.file.path, buffer_size=_BUFFER_BYTES) as file,
            ):
                for batch in file.iter_batches(
                    _BATCH_ROWS,
                    row_groups=[self.group],
                    columns=[self.field.name],
                    use_threads=False,  # in forked workers thread pools are gone
                ):
                    for scalar in self.field.select_column(batch):
                        yield row, scalar
                        row += 1
        except BadDocumentError as error:
            yield row, error

    def parse(self, raw: Any) -> Value:
        return self.field.parse_scalar(raw)


def block_extent(total: int, num_streams: int, smallest: int, largest: int) -> int:
    """Bytes or rows per block, so that each stream has _BLOCKS_PER_STREAM blocks, if it can be."""
    return min(max(-(-total // (num_streams * _BLOCKS_PER_STREAM)), smallest), largest)


def load_row_groups(file: SourceFile, field: Field) -> list[RowGroupBlock]:
    """The row groups of a Parquet file; reads its footer. Raises BadDocumentError, OSError."""
    import pyarrow.parquet as pq

    with _complaining_about(file):
        metadata = pq.read_metadata(file.path)
    field.check_schema(metadata.schema.to_arrow_schema(), str(file.path))
    blocks, row = [], 1
    for group in range(metadata.num_row_groups):
        blocks.append(RowGroupBlock(file, field, group, row))
        row += metadata.row_group(group).num_rows
    if row == 1:
        raise empty_file(file)
    return blocks


def empty_file(file: SourceFile) -> BadDocumentError:
    """The complaint about a file of records that has none."""
    return BadDocumentError(
        f"{file.option}.path: {file.path} holds no documents. Remove or exclude the file."
    )


@contextmanager
def open_file(file: SourceFile) -> Iterator[io.BufferedReader]:
    """The file, decompressed. Raises BadDocumentError where it is damaged."""
    compression = read_ending(file.path).compression
    if compression is None:
        with file.path.open("rb") as plain:
            yield plain
        return
    if compression == "xz":
        with _complaining_about(file), lzma.open(file.path) as stream:
            yield io.BufferedReader(stream, _BUFFER_BYTES)
        return
    import pyarrow

    with (
        _complaining_about(file),
        pyarrow.input_stream(file.path, compression=compression) as stream,
    ):
        yield io.BufferedReader(stream, _BUFFER_BYTES)


@contextmanager
def _complaining_about(file: SourceFile) -> Iterator[None]:
    """Turn what pyarrow raises for a damaged file into BadDocumentError."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, lzma.LZMAError, EOFError, OSError) as error:
        if getattr(error, "errno", None) is not None:  # the medium, not the file
            raise
        raise BadDocumentError(
            f"{file.option}.path: {file.path} is damaged ({error}). Replace or exclude the file."
        ) from error
