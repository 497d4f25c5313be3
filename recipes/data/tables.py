"""Blocks out of CSV and TSV files. Imports no torch.

CSV is quoted as RFC 4180 has it. TSV (IANA's text/tab-separated-values) has no quotes: a tab ends a
field, a line's end a row, and a quote is a character like others. A field that was written by CSV's
rule nevertheless shows itself, by its doubled quotes or by the wrong number of fields, and is bad.
"""

import csv
import io
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass

from recipes.data.blocks import FileBlock
from recipes.data.opening import empty_file, explain, open_file
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
                    yield line, self._select(row, column, len(header))
            if num_documents == 0:
                raise empty_file(self.file)
        except BadDocumentError as error:
            yield line + 1, error

    def parse(self, raw: str) -> Value:
        return self.field.check_text(raw)

    def find_column(self, header: list[str]) -> int:
        """Which column is the field. Raises BadDocumentError."""
        if header.count(self.field.name) != 1:
            error = BadDocumentError(self.field.missing(header).at(str(self.file.path)))
            raise explain(self.file, error)
        return header.index(self.field.name)

    def _select(self, row: list[str], column: int, expected: int) -> str | BadDocumentError:
        if len(row) != expected:
            return BadDocumentError(
                f"{self.file.option}.path: {PLACE} has {len(row)} fields, but the header "
                f"{expected}. Correct or remove the row."
            )
        value = row[column]
        if self.delimiter == "\t" and _is_quoted(value):
            return BadDocumentError(
                f"{self.file.option}.path: {PLACE} has a field in quotes as CSV writes it, which "
                "TSV has not. Write the file without, as JSON lines or as CSV with commas."
            )
        return value


def load_table(file: SourceFile, field: Field, delimiter: str) -> TableBlock:
    """The block of the file; reads its header. Raises BadDocumentError, OSError."""
    block = TableBlock(file, field, delimiter)
    with closing(_read_rows(file, delimiter)) as rows:
        first = next(rows, None)
    if first is None:
        raise empty_file(file)
    block.find_column(first[1])
    return block


def _read_rows(file: SourceFile, delimiter: str) -> Generator[tuple[int, list[str]], None, None]:
    """(line on which it begins, fields) of each row that is not blank, the header the first. Bytes
    that are no UTF-8 are lone surrogates, which `Field.check_text` refuses.
    Raises BadDocumentError from where the file is damaged."""
    csv.field_size_limit(_MAX_FIELD_CHARACTERS)
    with (
        open_file(file) as stream,
        io.TextIOWrapper(stream, "utf-8-sig", "surrogateescape", newline="") as text,
    ):
        if delimiter == "\t":
            reader = csv.reader(text, delimiter="\t", quoting=csv.QUOTE_NONE, strict=True)
        else:
            reader = csv.reader(text, delimiter=delimiter, strict=True)
        line = 1
        try:
            for row in reader:
                if row:
                    yield line, row
                line = reader.line_num + 1
        except csv.Error as error:
            bad = BadDocumentError(
                f"{file.option}.path: {file.path}:{line} and what follows is not readable "
                f"({error}). Correct the file, or exclude it."
            )
            raise explain(file, bad) from error


def _is_quoted(value: str) -> bool:
    """Whether CSV's rule made this of a text that has quotes, or of an empty one."""
    inner = value[1:-1]
    if len(value) < 2 or value[0] != '"' or value[-1] != '"':
        return False
    return inner == "" or ('""' in inner and '"' not in inner.replace('""', ""))
