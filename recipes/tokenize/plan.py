"""Which parts a configuration's documents become. Depends on them alone, not on workers."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from recipes.data.config import HUB, DataConfig
from recipes.data.documents import Documents
from recipes.data.formats import load_blocks
from recipes.data.hub import hash_files
from recipes.data.sources import SourceFile, find_files
from recipes.data.tokenizer import digest_tokenizer
from recipes.tokenize.parts import FIELD, UNFINISHED, Part

_MAX_PARTS = 256
"""Parts of a source: what can be made at once, and how little a broken run loses."""


def plan_parts(data: DataConfig, tokenizer: Path, output: Path) -> list[list[Part]]:
    """The parts of each source, in `output`/<source>/.

    Indexes the sources, as training does, and parses the first document of each. Raises ValueError
    if one cannot be read, or its folder has Parquet files that are no parts of it.
    """
    files, rules = find_files(data), _hash_rules(data, tokenizer)
    plan = []
    for index, source in enumerate(data.sources):
        option = f"data.sources[{index}]"
        own = [file for file in files if file.source == index]
        blocks = load_blocks(option, source, own, data)
        if data.on_error == "raise":
            Documents(option, blocks).check_first(1)
        fingerprint = _hash(rules, _describe(data, index, own), len(blocks))
        folder = output / folder_name(data, index)
        extent = -(-len(blocks) // _MAX_PARTS)
        parts = [
            Part(
                path=folder / f"part-{number:05d}.parquet",
                option=option,
                blocks=blocks[first : first + extent],
                fingerprint=fingerprint,
                skips_bad=data.on_error == "skip",
            )
            for number, first in enumerate(range(0, len(blocks), extent or 1))
        ]
        _check_folder(folder, parts)
        plan.append(parts)
    return plan


def folder_name(data: DataConfig, index: int) -> str:
    """A source's folder: its number, and its name if it has one."""
    name = data.sources[index].name
    return str(index) if name is None else f"{index}-{name}"


def format_sources(data: DataConfig, output: Path) -> str:
    """The `[[data.sources]]` tables that read the parts with the weights of the sources."""
    tables = []
    for index, source in enumerate(data.sources):
        name = "" if source.name is None else f"name = {_quote(source.name)}\n"
        path = _quote(str(output / folder_name(data, index) / "*.parquet"))
        weight = f"weight = {source.weight}\n" if source.weight != 1.0 else ""
        tables.append(f'[[data.sources]]\n{name}path = {path}\ntokens = "{FIELD}"\n{weight}')
    return "\n".join(tables)


def _quote(text: str) -> str:
    """A TOML string."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _describe(data: DataConfig, index: int, files: Sequence[SourceFile]) -> Any:
    source = data.sources[index]
    options = asdict(source)
    for option in ("name", "weight"):
        del options[option]
    if source.path.startswith(HUB):
        return sorted(options.items()), hash_files(f"data.sources[{index}]", source)
    del options["path"]  # files may move
    return sorted(options.items()), [(file.name, file.num_bytes) for file in files]


def _hash_rules(data: DataConfig, tokenizer: Path) -> str:
    """Of the options and files that all documents depend on; num_streams sets the blocks."""
    return _hash(digest_tokenizer(tokenizer), data.bos, data.on_error, data.num_streams)


def _hash(*values: Any) -> str:
    return hashlib.blake2b(repr(values).encode(), digest_size=16).hexdigest()


def _check_folder(folder: Path, parts: Sequence[Part]) -> None:
    """Raise ValueError for a file that the glob of `format_sources` would read beside the parts;
    remove what a broken run left."""
    known = {part.path for part in parts}
    for path in sorted(folder.glob("*.parquet")):
        if path not in known:
            raise ValueError(
                f"--output: {path} is no part of {parts[0].option if parts else 'a source'}. "
                "Name another folder, or remove it."
            )
    for path in folder.glob(f"*{UNFINISHED}"):
        path.unlink()
