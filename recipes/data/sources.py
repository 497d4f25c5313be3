"""From `[[data.sources]]` to files: what exists, under which name, in which split.

Imports neither torch nor numpy, so the command line can check sources at once.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from recipes.data.config import EMBEDDED_CORPUS, HUB, DataConfig, SourceConfig
from recipes.data.corpus import find_corpus_files
from recipes.data.endings import check_field, strip_compression
from recipes.data.paths import identify, is_utf8, match_files
from recipes.data.splits import has_rows_twice, is_hub_folder, share_rows, split_hub_path


@dataclass(kw_only=True, slots=True, frozen=True)
class SourceFile:
    """One file of a source."""

    path: Path
    """Where it is on this machine."""

    name: str
    """Its path below the folder in which the source begins: the same on every machine."""

    num_bytes: int
    """Its size."""

    source: int
    """Number of the source it belongs to."""

    @property
    def option(self) -> str:
        """What error messages call the source."""
        return f"data.sources[{self.source}]"


def check_sources(data: DataConfig) -> None:
    """Raise ValueError, one line, unless every source names files. Opens none of them, and does
    not ask the hub."""
    find_files(data)


def find_files(data: DataConfig) -> list[SourceFile]:
    """The files of all sources, in the order of the sources, those of one source by name, each
    once. A source of the hub has none.

    Raises ValueError if there is no source, a source matches no file, a file of a format that is
    not read or without the source's field, or the same documents twice, and if two sources have
    the same file or hub data set: their names for a document differ, so one might train on what
    the other holds out.
    """
    if not data.sources:
        raise ValueError(
            "data.sources is empty. Add a [[data.sources]] table whose path is a file, a glob, "
            f"{HUB}owner/name or {EMBEDDED_CORPUS}."
        )
    files: list[SourceFile] = []
    owners: dict[object, str] = {}
    _check_splits(data.sources)
    for index, source in enumerate(data.sources):
        option = f"data.sources[{index}]"
        matches = _match(option, source.path)
        _check_formats(option, source, matches)
        for name, path in matches:
            identity = identify(path)
            real = identity if isinstance(identity, str) else os.path.realpath(path)
            # Compressed and not, or by another compression, it is the same by its name.
            for same in (identity, strip_compression(real)):
                owner = owners.setdefault(same, option)
                if owner != option:
                    raise _named_twice(option, source, str(path), owner)
            size = path.stat().st_size
            files.append(SourceFile(path=path, name=name, num_bytes=size, source=index))
    _check_folders(data.sources, files)
    return files


def is_validation(name: str, fraction: float) -> bool:
    """Whether the document `name` is held out: its hash, uniform in [0, 1), is below `fraction`.

    A larger fraction holds out the documents of a smaller one and more.
    """
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return int.from_bytes(digest) < fraction * 2**64


def _match(option: str, pattern: str) -> list[tuple[str, Path]]:
    """(name, path) of the files that a source's path means, sorted by name, at least one unless
    the hub has them."""
    if pattern == EMBEDDED_CORPUS:
        return find_corpus_files()
    name, _ = split_hub_path(pattern)
    if pattern.startswith(HUB) and name:
        if is_hub_folder(name) and not os.path.isdir(name):
            raise ValueError(
                f"{option}.path ({pattern}) names no folder of this machine. Give one with data "
                f"files, or {HUB}owner/name."
            )
        return []
    if "://" in pattern:
        raise ValueError(
            f"{option}.path ({pattern}) is not a known source. "
            f"Give a file, a glob, {HUB}owner/name or {EMBEDDED_CORPUS}."
        )
    if os.path.isdir(pattern):
        raise ValueError(
            f"{option}.path ({pattern}) is a folder. Give a file or a glob such as "
            f"{Path(pattern, '**', '*.jsonl')}."
        )
    try:
        matches = match_files(pattern)
    except ValueError as error:
        raise ValueError(f"{option}.path ({pattern}) {error}") from error
    except OSError as error:
        raise ValueError(f"{option}.path ({pattern}) cannot be read: {error}") from error
    if not matches:
        raise ValueError(
            f"{option}.path ({pattern}) matches no file. Give an existing file or a glob."
        )
    return matches


def _check_formats(option: str, source: SourceConfig, matches: Sequence[tuple[str, Path]]) -> None:
    """Raise ValueError unless all files are of readable formats with the source's field, and none
    is there compressed and not, or in two compressions."""
    if source.tokens is not None:
        what = f"{option}.tokens ({source.tokens}) is a field of records"
    elif source.text is not None:
        what = f"{option}.text ({source.text}) is a field of records"
    else:
        what = f"{option}.path ({source.path}) must match documents"
    originals: dict[str, Path] = {}
    for name, path in matches:
        if not is_utf8(name):
            raise ValueError(
                f"{option}.path ({source.path}) matches {str(path)!a}, whose name is not UTF-8. "
                "Rename the file."
            )
        try:
            check_field(path, source.tokens, source.text)
        except ValueError as error:
            raise ValueError(f"{what}, but {path} {error}") from error
        twin = originals.setdefault(strip_compression(name), path)
        if twin != path:
            raise ValueError(
                f"{option}.path ({source.path}) matches both {twin} and {path}, the same "
                "documents by their names. Remove one, or narrow the path."
            )


def _check_splits(sources: Sequence[SourceConfig]) -> None:
    """Raise ValueError unless each row of a hub data set is there once."""
    hub = [(index, source) for index, source in enumerate(sources) if _is_of_hub(source)]
    for position, (index, source) in enumerate(hub):
        option = f"data.sources[{index}]"
        if has_rows_twice(source):
            raise ValueError(
                f"{option}.split ({source.split}) names rows twice, or may. Name each row once."
            )
        for owner, other in hub[:position]:
            if share_rows(source, other):
                what = f"the split {source.split or 'train'}, or rows of it"
                raise _named_twice(option, source, what, f"data.sources[{owner}]")


def _check_folders(sources: Sequence[SourceConfig], files: Sequence[SourceFile]) -> None:
    """Raise ValueError if a hub source's folder has a file that is another source's."""
    for index, source in enumerate(sources):
        name, _ = split_hub_path(source.path)
        if not (_is_of_hub(source) and is_hub_folder(name)):
            continue
        folder = os.path.realpath(name)
        for file in files:
            if Path(os.path.realpath(file.path)).is_relative_to(folder):
                option, path = f"data.sources[{index}]", str(file.path)
                raise _named_twice(option, source, path, file.option)


def _is_of_hub(source: SourceConfig) -> bool:
    return source.path.startswith(HUB)


def _named_twice(option: str, source: SourceConfig, what: str, owner: str) -> ValueError:
    return ValueError(
        f"{option}.path ({source.path}) matches {what}, which {owner} has already. "
        "Name each file in one source, and give that the weight of both."
    )
