"""From a path or glob to files: each file once, whatever links lead to it.

Imports neither torch nor numpy.
"""

import os
from collections import deque
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

_WILDCARDS = frozenset("*?[")


def match_files(pattern: str) -> list[tuple[str, Path]]:
    """(name, path) of each file that a path or glob means, sorted by name; possibly none.

    The name is the path below the pattern's fixed folder. A file with several names, by links to
    it or to a folder above, or hard links, has the first of those that go through no link, or of
    all if each does. Raises ValueError for a link that leads nowhere where the pattern looks, and
    OSError for a folder that cannot be read.
    """
    path = Path(pattern)
    if path.is_file():
        return [(path.name, path)]
    root, parts = _split(path)
    real_root = os.path.realpath(root)
    best: dict[object, tuple[bool, str, Path]] = {}
    for match in _expand(root, parts):
        name = match.relative_to(root).as_posix()
        is_linked = os.path.realpath(match) != os.path.join(real_root, name)
        candidate = (is_linked, name, match)
        identity = identify(match)
        best[identity] = min(best.get(identity, candidate), candidate)
    return sorted((name, match) for _, name, match in best.values())


def identify(path: Path) -> object:
    """Equal for all names of an existing file."""
    status = path.stat()
    # Not for all files: some network file systems do not keep their numbers apart.
    is_hard_linked = status.st_nlink > 1
    return (status.st_dev, status.st_ino) if is_hard_linked else os.path.realpath(path)


def _split(pattern: Path) -> tuple[Path, Sequence[str]]:
    """The folder before the first part with a wildcard, and the parts from there on."""
    parts = pattern.parts
    fixed = next((i for i, part in enumerate(parts) if _has_wildcard(part)), len(parts) - 1)
    return Path(*parts[:fixed]), parts[fixed:]


def _has_wildcard(part: str) -> bool:
    return not _WILDCARDS.isdisjoint(part)


def _expand(folder: Path, parts: Sequence[str]) -> Iterator[Path]:
    """The files that the parts of a pattern match below `folder`."""
    head, *rest = parts
    if head == "**":
        for inner in _walk(folder):
            yield from _expand(inner, rest or ["*"])
        return
    for path in _list(folder, head):
        if rest and path.is_dir():
            yield from _expand(path, rest)
        elif not rest and path.is_file():
            yield path


def _list(folder: Path, part: str) -> list[Path]:
    """What one part of a pattern matches in a folder. Hidden names need a pattern with a dot."""
    if not _has_wildcard(part):
        found = [folder / part]
    else:
        names = os.listdir(folder) if folder.is_dir() else []
        shown = (name for name in names if part.startswith(".") or not name.startswith("."))
        found = [folder / name for name in sorted(shown) if fnmatchcase(name, part)]
    for path in found:
        _check_link(path)
    return found


def _walk(top: Path) -> Iterator[Path]:
    """`top` and each folder below it once: what the rest of a pattern finds in a folder does not
    depend on the way there. So loops of links end. Folders are taken before links to them."""
    seen: set[str] = set()
    folders, links = deque([top]), deque[Path]()
    while folders or links:
        folder = folders.popleft() if folders else links.popleft()
        real = os.path.realpath(folder)
        if real in seen or not folder.is_dir():
            continue
        seen.add(real)
        yield folder
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if entry.is_symlink() and not entry.name.startswith("."):
                    _check_link(Path(entry))
                if entry.is_dir() and not entry.name.startswith("."):
                    (links if entry.is_symlink() else folders).append(Path(entry))


def _check_link(path: Path) -> None:
    if path.is_symlink() and not path.exists():
        raise ValueError(
            f"meets the link {path}, which leads nowhere ({os.readlink(path)}). Restore what it "
            "leads to, or remove it."
        )
