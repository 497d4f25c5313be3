"""What one line or row says: a document's text, or its token ids.

Whatever makes it unusable is a BadDocumentError. Imports no torch.
"""

import json
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from recipes.characters import escape

PLACE = "{place}"
_NUM_SHOWN = 30
_NUM_DIGITS = 1000
_MAX_ID = 2**63 - 1

Value = str | np.ndarray
"""A text, or token ids, int64 [T]; possibly empty."""


class BadDocumentError(Exception):
    """A document that cannot be used. PLACE in the message stands for where it lies."""

    def at(self, place: str) -> str:
        """The message, one line, whatever the document has in it."""
        return escape(" ".join(str(self).replace(PLACE, place).split()))


class BadRecordError(BadDocumentError):
    """A line that is no record: perhaps the file is not what its name says."""


class _Repeating(dict[str, Any]):
    """A JSON object that has fields twice."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.repeated = {name for name, count in Counter(n for n, _ in pairs).items() if count > 1}


@dataclass(slots=True, frozen=True)
class Field:
    """Which field of a source's records holds the document. Null is an empty document.

    A name with dots is that of a field within fields, `data.text`, unless the record has a field of
    that very name.
    """

    option: str
    """The source, such as `data.sources[0]`."""

    name: str
    """The field."""

    is_tokens: bool
    """Whether it holds token ids."""

    def parse_line(self, line: bytes) -> Value:
        """The document of a line of JSON."""
        record = self._load(line)
        if isinstance(record, list) and record and isinstance(record[0], dict):
            raise BadRecordError(
                f"{self.option}.path: {PLACE} is an array of JSON objects. Write one object a "
                "line: jq -c '.[]'."
            )
        if not isinstance(record, dict):
            raise BadRecordError(
                f"{self.option}.path: {PLACE} is not a JSON object. "
                f'Write the line as {{"{self.name}": "..."}}.'
            )
        return self.select(record)

    def _load(self, line: bytes) -> Any:
        """The value of a line of JSON, whose encoding is UTF-8 alone."""
        try:
            text = line.decode("utf-8-sig")
            try:
                return json.loads(text, object_pairs_hook=_build_object)
            except json.JSONDecodeError:
                raise
            except ValueError:  # Python's limit of digits, perhaps in a field that nobody reads
                return json.loads(text, object_pairs_hook=_build_object, parse_int=_parse_integer)
        except RecursionError as error:
            raise BadRecordError(
                f"{self.option}.path: {PLACE} is JSON nested too deeply to be read. "
                "Correct or remove the line."
            ) from error
        except ValueError as error:  # also UnicodeDecodeError
            raise BadRecordError(
                f"{self.option}.path: {PLACE} is not valid JSON ({error}). {_choose_remedy(line)}"
            ) from error

    def select(self, record: dict[str, Any]) -> Value:
        """The document of a record of Python values."""
        value: Any = record
        for part in [self.name] if self.name in record else self.name.split("."):
            if value is None:
                break
            if not isinstance(value, dict) or part not in value:
                raise self.missing(_list_keys(record))
            if isinstance(value, _Repeating) and part in value.repeated:
                raise BadDocumentError(
                    f"{self._label}: {PLACE} has the field {part} more than once. Remove all but "
                    "one."
                )
            value = value[part]
        return self._check_list(value) if self.is_tokens else self.check_text(value)

    def check_schema(self, schema: Any, place: str) -> None:
        """Raise BadDocumentError unless a pyarrow schema has the field, once."""
        if schema.names.count(self.name) != 1 and not self._is_nested(schema):
            raise BadDocumentError(self.missing(_list_columns(schema)).at(place))

    def select_column(self, batch: Any) -> Any:
        """The field's column of a pyarrow table or batch that `check_schema` finds it in."""
        import pyarrow.compute as pc

        if self.name in batch.schema.names:
            return batch.column(self.name)
        first, *inner = self.name.split(".")
        return pc.struct_field(batch.column(first), inner)

    def _is_nested(self, schema: Any) -> bool:
        import pyarrow

        first, *inner = self.name.split(".")
        if not inner or self.name in schema.names or schema.names.count(first) != 1:
            return False
        kind = schema.field(first).type
        for part in inner:
            if not pyarrow.types.is_struct(kind) or kind.get_field_index(part) < 0:
                return False
            kind = kind.field(part).type
        return True

    def parse_scalar(self, scalar: Any) -> Value:
        """The document of a pyarrow scalar, an entry of the field's column."""
        if not self.is_tokens:
            try:
                return self.check_text(scalar.as_py())
            except UnicodeDecodeError as error:
                raise self._not_unicode() from error
        if not scalar.is_valid:
            return np.zeros(0, np.int64)
        values = getattr(scalar, "values", None)
        if values is None:
            raise self._not_tokens(str(scalar.type))
        tokens = values.to_numpy(zero_copy_only=False)
        if tokens.dtype.kind not in "iu":  # nulls make it a column of floats
            raise self._not_tokens(str(scalar.type))
        if tokens.dtype == np.uint64 and len(tokens) and tokens.max() > _MAX_ID:
            raise self._beyond(int(tokens.max()))
        return tokens.astype(np.int64)

    def missing(self, fields: list[str]) -> BadDocumentError:
        """The complaint about a record, or a file, that has only `fields`."""
        what = "token ids" if self.is_tokens else "text"
        if fields.count(self.name) > 1:
            return BadDocumentError(
                f"{self._label} is the name of {fields.count(self.name)} fields of {PLACE}. Rename "
                f"all but the one that holds the {what}."
            )
        shown = ", ".join(fields[:_NUM_SHOWN]) or "none"
        return BadDocumentError(
            f"{self._label} is not a field of {PLACE}, which has: {shown}. Name the field that "
            f"holds the {what}."
        )

    @property
    def _label(self) -> str:
        return f"{self.option}.{'tokens' if self.is_tokens else 'text'} ({self.name})"

    def check_text(self, value: object) -> str:
        """The text of a field's value. Raises BadDocumentError."""
        if value is None:
            return ""
        if not isinstance(value, str):
            raise BadDocumentError(
                f"{self._label} must be a field with strings, but {PLACE} has "
                f"{type(value).__name__}. Name the field that holds the text."
            )
        try:
            value.encode()
        except UnicodeEncodeError as error:  # JSON can spell half a surrogate pair
            raise self._not_unicode() from error
        return value

    def _check_list(self, value: object) -> np.ndarray:
        if value is None:
            return np.zeros(0, np.int64)
        if not isinstance(value, list):
            raise self._not_tokens(type(value).__name__)
        strangers = [type(token).__name__ for token in value if type(token) is not int]
        if strangers:
            raise self._not_tokens(f"a list with {strangers[0]}")
        try:
            return np.array(value, np.int64)
        except OverflowError as error:
            raise self._beyond(max(value, key=abs)) from error

    def _not_tokens(self, found: str) -> BadDocumentError:
        return BadDocumentError(
            f"{self._label} must be a field with lists of integers, but {PLACE} has {found}. "
            "Name the field that holds the token ids."
        )

    def _beyond(self, number: int) -> BadDocumentError:
        shown = f" ({number})" if abs(number) < 10**_NUM_SHOWN else ""
        return self._not_tokens(f"a number beyond 2**63{shown}")

    def _not_unicode(self) -> BadDocumentError:
        return BadDocumentError(
            f"{self._label} of {PLACE} is not Unicode text. Correct or remove the document."
        )


def _build_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    return record if len(record) == len(pairs) else _Repeating(pairs)


def _parse_integer(digits: str) -> int:
    """The integer; of one beyond Python's limit of digits, another that is beyond any token id."""
    return int(digits[:_NUM_DIGITS])


def _choose_remedy(line: bytes) -> str:
    text = line.strip()
    if text == b"[" or text.startswith(b"[{"):
        return "An array of objects is not read: write one object a line, jq -c '.[]'."
    if text == b"{":
        return "An object must be one line: jq -c . writes it so."
    if b"\r" in text:
        return "Lines must end with a newline, not with a carriage return alone."
    return "Correct or remove the line."


def _list_keys(record: dict[str, Any], before: str = "") -> list[str]:
    """The fields of a record, those within fields with dots."""
    names: list[str] = []
    for key, value in record.items():
        name = before + key
        names += _list_keys(value, f"{name}.") if isinstance(value, dict) and value else [name]
    return names


def _list_columns(schema: Any, before: str = "") -> list[str]:
    """The same of a pyarrow schema or struct."""
    import pyarrow

    names: list[str] = []
    for field in schema:
        name = before + field.name
        is_struct = pyarrow.types.is_struct(field.type)
        names += _list_columns(field.type, f"{name}.") if is_struct else [name]
    return names
