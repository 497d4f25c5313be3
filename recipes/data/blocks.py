"""Blocks: runs of documents that are read forward, out of files.

    plain text      the file, one document
    JSON lines      those that begin in a range of bytes; a compressed file in one block
    CSV, TSV        the file (tables.py)
    Parquet         a row group

A block knows where it lies and nothing of the documents in it, so the index of any amount of data
is small and needs no pass over them. It keeps no open file: worker processes may share it.
Imports no torch.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from recipes.data.contents import HEAD_BYTES, find_binary
from recipes.data.opening import BUFFER_BYTES, complaining_about, empty_file, explain, open_file
from recipes.data.records import PLACE, BadDocumentError, BadRecordError, Field, Value
from recipes.data.sources import SourceFile

_BATCH_ROWS = 256
_BLANK = (b"", b"\xef\xbb\xbf")
"""Lines that are no documents: a byte order mark is no text."""
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
        binary = find_binary(content[:HEAD_BYTES])
        if binary is not None:
            raise BadDocumentError(
                f"{self.file.option}.path: {PLACE} is {binary.what} by its content. {binary.remedy}"
            )
        try:
            return content.decode("utf-8-sig")  # a byte order mark is no text
        except UnicodeDecodeError as error:
            bad = BadDocumentError(
                f"{self.file.option}.path: {PLACE} is not UTF-8 text (byte {error.start}). "
                "Convert or exclude the file."
            )
            raise explain(self.file, bad) from error


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
        buffer_bytes = min(BUFFER_BYTES, self.end - self.begin + 1)
        with self.file.path.open("rb", buffer_bytes) as stream:
            offset = max(self.begin - 1, 0)
            stream.seek(offset)
            if self.begin > 0:
                # The end of a line that begins before; where that is beyond the block, no further:
                # a line of many blocks would be read by each of them.
                offset += len(stream.readline(self.end - offset))
            while offset < self.end and (line := stream.readline()):
                if line.strip() not in _BLANK:
                    yield offset, line
                offset += len(line)

    def parse(self, raw: bytes) -> Value:
        try:
            return self.field.parse_line(raw)
        except BadRecordError as error:
            raise explain(self.file, error) from error

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
                    if line.strip() not in _BLANK:
                        num_documents += 1
                        yield number, line
            if num_documents == 0:
                raise empty_file(self.file)
        except BadDocumentError as error:
            yield number + 1, error

    def parse(self, raw: bytes) -> Value:
        try:
            return self.field.parse_line(raw)
        except BadRecordError as error:
            raise explain(self.file, error) from error


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
                complaining_about(self.file),
                pq.ParquetFile(self.file.path, buffer_size=BUFFER_BYTES) as file,
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

    with complaining_about(file):
        metadata = pq.read_metadata(file.path)
        field.check_schema(metadata.schema.to_arrow_schema(), str(file.path))
    blocks, row = [], 1
    for group in range(metadata.num_row_groups):
        blocks.append(RowGroupBlock(file, field, group, row))
        row += metadata.row_group(group).num_rows
    if row == 1:
        raise empty_file(file)
    return blocks
