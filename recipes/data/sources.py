"""From `[[data.sources]]` and `[[validation.sets]]` to files: what exists, under which name, in
which split.

Imports neither torch nor numpy, so the command line can check sources at once.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from recipes.characters import escape, find_fault
from recipes.data.config import (
    EMBEDDED_CORPUS,
    HUB,
    DataConfig,
    DocumentsConfig,
    ValidationSetConfig,
    set_option,
)
from recipes.data.corpus import find_corpus_files
from recipes.data.endings import check_field, strip_compression
from recipes.data.paths import identify, match_files
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
    """Number of the source, or held-out set, it belongs to."""

    option: str
    """What error messages call that."""

    mtime_ns: int = 0
    """When it was last changed; 0 where nobody asks."""


def check_sources(data: DataConfig, sets: Sequence[ValidationSetConfig] = ()) -> None:
    """Raise ValueError, one line, unless every source and held-out set names files, no set those of
    a source. Opens none of them, and does not ask the hub."""
    find_set_files(data, sets) if sets else find_files(data)


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
        for file in _find(option, index, source):
            for same in _identities(file.path):
                owner = owners.setdefault(same, option)
                if owner != option:
                    raise _named_twice(option, source, str(file.path), owner)
            files.append(file)
    for index, source in enumerate(data.sources):
        others = (file for file in files if file.source != index)
        if inside := _find_in_folder(source, others):
            path = str(inside.path)
            raise _named_twice(f"data.sources[{index}]", source, path, inside.option)
    return files


def find_set_files(data: DataConfig, sets: Sequence[ValidationSetConfig]) -> list[list[SourceFile]]:
    """The files of each held-out set, those of one set by name, each once. A set of the hub has
    none. Two sets may share files.

    Raises ValueError as `find_files` does, and for a set that has a file, or rows of a hub data
    set, of a source: training would read what the set holds out.
    """
    training, found = find_files(data), []
    for index, held_out in enumerate(sets):
        option = set_option(index)
        _check_rows_once(option, held_out)
        files = _find(option, index, held_out)
        for what, owner in _find_shared(held_out, files, data.sources, training):
            raise ValueError(
                f"{option}.path ({held_out.path}) matches {what}, which {owner} has: training "
                "would read what the set holds out. Name other documents in one of them."
            )
        found.append(files)
    return found


def is_validation(name: str, fraction: float) -> bool:
    """Whether the document `name` is held out: its hash, uniform in [0, 1), is below `fraction`.

    A larger fraction holds out the documents of a smaller one and more.
    """
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return int.from_bytes(digest) < fraction * 2**64


def _find(option: str, index: int, documents: DocumentsConfig) -> list[SourceFile]:
    """The files of one source or held-out set; none of the hub."""
    matches = _match(option, documents.path)
    _check_formats(option, documents, matches)
    files = []
    for name, path in matches:
        status = path.stat()
        size, time = status.st_size, status.st_mtime_ns
        files.append(
            SourceFile(
                path=path, name=name, num_bytes=size, source=index, option=option, mtime_ns=time
            )
        )
    return files


def _identities(path: Path) -> tuple[object, ...]:
    """Of a file, and of the same documents compressed and not, or by another compression."""
    identity = identify(path)
    real = identity if isinstance(identity, str) else os.path.realpath(path)
    return identity, strip_compression(real)


def _match(option: str, pattern: str) -> list[tuple[str, Path]]:
    """(name, path) of the files that a source's path means, sorted by name, at least one unless
    the hub has them."""
    if not pattern:
        raise ValueError(f"{option}.path is empty. Give a file, a glob, or {HUB}owner/name.")
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


def _check_formats(
    option: str, source: DocumentsConfig, matches: Sequence[tuple[str, Path]]
) -> None:
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
        if fault := find_fault(name):
            raise ValueError(
                f"{option}.path ({source.path}) matches {escape(str(path))}, whose name {fault}. "
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


def _check_splits(sources: Sequence[DocumentsConfig]) -> None:
    """Raise ValueError unless each row of a hub data set is there once."""
    hub = [(index, source) for index, source in enumerate(sources) if _is_of_hub(source)]
    for position, (index, source) in enumerate(hub):
        option = f"data.sources[{index}]"
        _check_rows_once(option, source)
        for owner, other in hub[:position]:
            if share_rows(source, other):
                what = f"the split {source.split or 'train'}, or rows of it"
                raise _named_twice(option, source, what, f"data.sources[{owner}]")


def _find_shared(
    held_out: DocumentsConfig,
    files: Sequence[SourceFile],
    sources: Sequence[DocumentsConfig],
    training: Sequence[SourceFile],
) -> Iterator[tuple[str, str]]:
    """What of a held-out set a source has, or may have, and which; `files` are the set's."""
    for number, source in enumerate(sources):
        owner = f"data.sources[{number}]"
        if _is_of_hub(source) and _is_of_hub(held_out) and share_rows(held_out, source):
            yield f"the split {held_out.split or 'train'}, or rows of it", owner
        if inside := _find_in_folder(source, files):
            yield str(inside.path), owner
    owners = {same: file.option for file in training for same in _identities(file.path)}
    for file in files:
        for same in _identities(file.path):
            if same in owners:
                yield str(file.path), owners[same]
    if inside := _find_in_folder(held_out, training):
        yield str(inside.path), inside.option


def _check_rows_once(option: str, source: DocumentsConfig) -> None:
    if _is_of_hub(source) and has_rows_twice(source):
        raise ValueError(
            f"{option}.split ({source.split}) names rows twice, or may. Name each row once."
        )


def _find_in_folder(source: DocumentsConfig, files: Iterable[SourceFile]) -> SourceFile | None:
    """The first of the files that lies in the source's folder, if it is one in the hub's layout."""
    name, _ = split_hub_path(source.path)
    if not (_is_of_hub(source) and is_hub_folder(name)):
        return None
    folder = os.path.realpath(name)
    inside = (f for f in files if Path(os.path.realpath(f.path)).is_relative_to(folder))
    return next(inside, None)


def _is_of_hub(source: DocumentsConfig) -> bool:
    return source.path.startswith(HUB)


def _named_twice(option: str, source: DocumentsConfig, what: str, owner: str) -> ValueError:
    return ValueError(
        f"{option}.path ({source.path}) matches {what}, which {owner} has already. "
        "Name each file in one source, and give that the weight of both."
    )
