"""What an export was made from and how, kept beside it: whether a folder is the export that is
asked for is known by content, never by its name. Free of torch."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

RECORD_NAME = "export.json"

_WEIGHTS = "*.safetensors"


def digest_files(paths: Iterable[Path]) -> str:
    """SHA-256 of names and contents."""
    digest = hashlib.sha256()
    for path in paths:
        content = path.read_bytes()
        digest.update(f"{path.name} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()


def digest_json(content: Any) -> str:
    """SHA-256, whatever the order of keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def write_record(folder: Path, source: Mapping[str, Any]) -> None:
    """source: what the export is made from and how, by name; strings and numbers."""
    sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    content = json.dumps({"source": dict(source), "files": sizes}, indent=2) + "\n"
    (folder / RECORD_NAME).write_text(content, encoding="utf-8")


def read_source(folder: Path) -> dict[str, Any] | None:
    """What the export in `folder` was made from; None if it is no export, or has lost files.

    Documents may be edited; weights must have the length that was written.
    """
    try:
        content = json.loads((folder / RECORD_NAME).read_bytes())
        source, sizes = dict(content["source"]), dict(content["files"])
    except (OSError, ValueError, KeyError, TypeError):  # any other file of that name
        return None
    for name, size in sizes.items():
        path = folder / name
        if not path.is_file() or (path.match(_WEIGHTS) and path.stat().st_size != size):
            return None
    return source


def check_same(folder: Path, source: Mapping[str, Any], option: str) -> None:
    """Raise ValueError unless the existing `folder`, which `option` names, is the export of
    `source`."""
    found = read_source(folder)
    if found is None:
        raise ValueError(
            f"{option} ({folder}) exists and is no complete export. Remove it, or name another."
        )
    differing = [name for name in {**source, **found} if source.get(name) != found.get(name)]
    if differing:
        parts = (_describe(name, found.get(name), source.get(name)) for name in differing)
        raise ValueError(
            f"{option} ({folder}) has another export: {', '.join(parts)}. Remove it, or name "
            "another."
        )


def _describe(name: str, found: Any, wanted: Any) -> str:
    """Digests say nothing to a reader."""
    if any(isinstance(value, str) and len(value) == 64 for value in (found, wanted)):
        return f"{name} differs"
    return f"{name} ({found} there, {wanted} asked for)"
