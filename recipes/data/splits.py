"""Which rows of which data set a source of the hub means, as far as its names tell.

Imports neither torch nor `datasets`.
"""

import os
import re
from collections.abc import Sequence
from itertools import combinations
from math import inf
from pathlib import Path
from typing import NamedTuple

from recipes.data.config import HUB, DocumentsConfig

_SLICE = re.compile(
    r"(?P<split>\w+)(?:\[(?P<begin>-?[\d_]+%?)?:(?P<end>-?[\d_]+%?)?\])?(?P<rounding>\(.*\))?"
)
"""As `datasets` spells it: train, train[:50%], train[10:20], train[:50%](pct1_dropremainder)."""


class _Rows(NamedTuple):
    """Rows begin..end of a split."""

    split: str
    unit: str
    """Of begin and end: rows, or percent as they are rounded. Only within one they compare."""
    begin: float
    end: float


def split_hub_path(path: str) -> tuple[str, str | None]:
    """(owner/name or a folder, revision) of a source's path."""
    name = path.removeprefix(HUB)
    if is_hub_folder(name):
        return name, None
    name, _, revision = name.partition("@")
    return name, revision or None


def is_hub_folder(name: str) -> bool:
    """Whether this is a folder rather than a data set of the hub; it need not be there."""
    return name.startswith((".", "/")) or os.path.isdir(name)


def share_rows(first: DocumentsConfig, second: DocumentsConfig) -> bool:
    """Whether two sources of the hub have rows in common, or may have. Revisions and streaming
    make no difference; slices of one split are apart if both count rows, or percent, from the
    beginning."""
    if _identify(first) != _identify(second):
        return False
    rows = _parse(second.split)
    return any(_overlap(one, other) for one in _parse(first.split) for other in rows)


def has_rows_twice(source: DocumentsConfig) -> bool:
    """Whether the parts of the source's split, train[:50%]+train[25%:], have rows in common."""
    return any(_overlap(one, other) for one, other in combinations(_parse(source.split), 2))


def _identify(source: DocumentsConfig) -> object:
    name, _ = split_hub_path(source.path)
    where = str(Path(name).resolve()) if is_hub_folder(name) else name
    return where, source.subset or "default"


def _parse(split: str | None) -> Sequence[_Rows]:
    return [_parse_slice(part.strip()) for part in (split or "train").split("+")]


def _parse_slice(text: str) -> _Rows:
    match = _SLICE.fullmatch(text)
    if match is None:  # not for this module to refuse
        return _Rows(text, "", 0, inf)
    bounds = [match["begin"] or "0", match["end"] or ""]
    if any(bound.startswith("-") for bound in bounds):  # from an end that is not known
        return _Rows(match["split"], "", 0, inf)
    is_whole = match["begin"] is None and match["end"] is None
    is_percent = any(bound.endswith("%") for bound in bounds)
    unit = "" if is_whole else f"%{match['rounding'] or ''}" if is_percent else "rows"
    begin, end = (int(bound.rstrip("%")) if bound else inf for bound in bounds)
    return _Rows(match["split"], unit, begin, end)


def _overlap(one: _Rows, other: _Rows) -> bool:
    if one.split != other.split and "all" not in (one.split, other.split):
        return False
    if one.unit != other.unit:
        return True
    return one.begin < other.end and other.begin < one.end
