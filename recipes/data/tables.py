"""Blocks out of CSV and TSV files. Imports no torch."""

import csv
import io
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass

from recipes.data.blocks import FileBlock, empty_file, open_file
from recipes.data.records import PLACE, BadDocumentError, Field, Value
from recipes.data.sources import SourceFile

_MAX_FIELD_CHARACTERS = 2**30
"""A quote that never closes makes one field of the rest of the file."""


@dataclass(slots=True, frozen=True)
class TableBlock(FileBlock):
    """A file of rows below a header, possibly compressed; each row is a document, `file:line`, by
    the line on which it begins."""

    field: Field
    delimiter: str

    def read(self) -> Iterator[tuple[int, str | BadDocumentError]]:
        line, num_documents = 0, 0
        try:
            with closing(_read_rows(self.file, self.delimiter)) as rows:
                line, header = next(rows, (0, []))
                column = self.find_column(header)
                for line, row in rows:
                    num_documents += 1
                    if len(row) == len(header):
                        yield line, row[column]
                    else:
                        yield line, self._ragged(len(row), len(header))
            if num_documents == 0:
                raise empty_file(self.file)
        except BadDocumentError as error:
            yield line + 1, error

    def parse(self, raw: str) -> Value:
        return self.field.check_text(raw)

    def find_column(self, header: list[str]) -> int:
        """Which column is the field. Raises BadDocumentError."""
        if header.count(self.field.name) != 1:
            raise BadDocumentError(self.field.missing(header).at(str(self.file.path)))
        return header.index(self.field.name)

    def _ragged(self, found: int, expected: int) -> BadDocumentError:
        return BadDocumentError(
            f"{self.file.option}.path: {PLACE} has {found} fields, but the header {expected}. "
            "Correct or remove the row."
        )


def load_table(file: SourceFile, field: Field, delimiter: str) -> TableBlock:
    """The block of the file; reads its header. Raises BadDocumentError, OSError."""
    block = TableBlock(file, field, delimiter)
    with closing(_read_rows(file, delimiter)) as rows:
        _, header = next(rows, (0, []))
    block.find_column(header)
    return block


def _read_rows(file: SourceFile, delimiter: str) -> Generator[tuple[int, list[str]], None, None]:
    """(line on which it begins, fields) of each row that is not blank, the header the first.
    Raises BadDocumentError from where the file is damaged."""
    csv.field_size_limit(_MAX_FIELD_CHARACTERS)
    with open_file(file) as stream, io.TextIOWrapper(stream, "utf-8-sig", newline="") as text:
        reader, line = csv.reader(text, delimiter=delimiter, strict=True), 1
        try:
            for row in reader:
                if row:
                    yield line, row
                line = reader.line_num + 1
        except (csv.Error, UnicodeDecodeError) as error:
            raise BadDocumentError(
                f"{file.option}.path: {file.path}:{line} and what follows is not readable "
                f"({error}). Correct the file, or exclude it."
            ) from error
