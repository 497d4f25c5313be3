"""The embedded corpus: the standard library of the running Python, read in place.

Nothing is downloaded or redistributed. The text differs between Python versions, so a result
names the version and the hash. Imports neither torch nor numpy.
"""

import hashlib
import os
import platform
import sysconfig
from dataclasses import dataclass
from pathlib import Path

_EXCLUDED_FOLDERS = frozenset(
    {
        "__pycache__",
        "dist-packages",
        "idle_test",
        "lib-dynload",
        "site-packages",
        "test",
        "tests",
    }
)
# Written when Python is built or installed: they hold paths and flags of one machine.
_EXCLUDED_PREFIXES = ("_sysconfigdata", "config-")


@dataclass(kw_only=True, slots=True, frozen=True)
class CorpusRecord:
    """What a result on the embedded corpus must state."""

    num_documents: int
    """Files."""

    num_bytes: int
    """UTF-8 bytes of all files."""

    hash: str
    """16 hex digits over names and contents."""

    python_version: str
    """Such as 3.11.7."""


def stdlib_folder() -> Path:
    """The folder that holds the standard library of the running Python."""
    return Path(sysconfig.get_path("stdlib"))


def find_corpus_files() -> list[tuple[str, Path]]:
    """(name relative to the folder, path) of each .py file outside tests, sorted by name.

    Raises ValueError if there is none, as in a Python whose library is a zip file.
    """
    root = stdlib_folder()
    found: dict[str, Path] = {}
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = [name for name in subfolders if not _is_excluded(name)]
        for file in files:
            if file.endswith(".py") and not _is_excluded(file):
                path = Path(folder, file)
                found[path.relative_to(root).as_posix()] = path
    if not found:
        raise ValueError(
            f"embedded://python: {root} holds no .py files (a zipped Python?). "
            "Use a Python with its library as files, or name another source."
        )
    return sorted(found.items())


def compute_record() -> CorpusRecord:
    """Size, hash and Python version of the embedded corpus; reads every file."""
    files = find_corpus_files()
    digest, num_bytes = hashlib.blake2b(digest_size=8), 0
    for name, path in files:
        content = path.read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode())
        digest.update(content)
        num_bytes += len(content)
    return CorpusRecord(
        num_documents=len(files),
        num_bytes=num_bytes,
        hash=digest.hexdigest(),
        python_version=platform.python_version(),
    )


def _is_excluded(name: str) -> bool:
    return name in _EXCLUDED_FOLDERS or name.startswith(_EXCLUDED_PREFIXES)
