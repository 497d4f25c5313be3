"""From `[[data.sources]]` to files: what exists, under which name, in which split.

Imports neither torch nor numpy, so the command line can check sources at once.
"""

import glob
import hashlib
from dataclasses import dataclass
from pathlib import Path

from recipes.data.config import EMBEDDED_CORPUS, HUB, DataConfig
from recipes.data.corpus import find_corpus_files

_WILDCARDS = frozenset("*?[")


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
    """The files of all sources, in the order of the sources, those of one source by name. A source
    of the hub has none.

    Raises ValueError if there is no source, a source matches no file, or two match the same file.
    """
    if not data.sources:
        raise ValueError(
            "data.sources is empty. Add a [[data.sources]] table whose path is a file, a glob, "
            f"{HUB}owner/name or {EMBEDDED_CORPUS}."
        )
    files: list[SourceFile] = []
    owners: dict[Path, str] = {}
    for index, source in enumerate(data.sources):
        option = f"data.sources[{index}]"
        for name, path in _match(option, source.path):
            owner = owners.setdefault(path.resolve(), option)
            if owner != option:
                raise ValueError(
                    f"{option}.path ({source.path}) matches {path}, which {owner} has already. "
                    "Name each file in one source."
                )
            size = path.stat().st_size
            files.append(SourceFile(path=path, name=name, num_bytes=size, source=index))
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
    if pattern.startswith(HUB) and len(pattern) > len(HUB):
        return []
    if "://" in pattern:
        raise ValueError(
            f"{option}.path ({pattern}) is not a known source. "
            f"Give a file, a glob, {HUB}owner/name or {EMBEDDED_CORPUS}."
        )
    path = Path(pattern)
    if path.is_file():
        return [(path.name, path)]
    if path.is_dir():
        raise ValueError(
            f"{option}.path ({pattern}) is a folder. Give a file or a glob such as "
            f"{path / '**' / '*.jsonl'}."
        )
    root = _fixed_folder(path)
    matches = sorted(
        (match.relative_to(root).as_posix(), match)
        for match in map(Path, glob.glob(pattern, recursive=True))
        if match.is_file()
    )
    if not matches:
        raise ValueError(
            f"{option}.path ({pattern}) matches no file. Give an existing file or a glob."
        )
    return matches


def _fixed_folder(pattern: Path) -> Path:
    """The folder before the first part of `pattern` that has a wildcard."""
    parts = pattern.parts
    fixed = next((i for i, part in enumerate(parts) if _WILDCARDS & set(part)), len(parts) - 1)
    return Path(*parts[:fixed])
