"""What a run, or a folder of token ids, was made of, and whether it is still the same.

A tokenizer is known by the content of its files: copied, moved or touched it is the same. A data
file is known by name, size and time of change; one that has another time is known by its content,
which is read whole where all files together are small, and else at places spread over the file.

The record is JSON beside what it is about. One process keeps it: it takes a `stat` of each file,
and reads only what is new, or has another time than the record: at most 256 MiB, or 12 KiB of each
file, in all. Imports neither torch nor numpy.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

from recipes.data.sources import SourceFile
from recipes.data.tokenizer import digest_tokenizer, resolve_tokenizer_path

INPUTS_FILE = "inputs.json"

_BUDGET_BYTES = 2**28
_MIN_SAMPLE_BYTES = 3 * 2**12
_BLOCK_BYTES = 2**16
_NUM_READERS = 16
_NUM_SHOWN = 3


class FileFact(NamedTuple):
    """What is known of a data file."""

    num_bytes: int
    mtime_ns: int
    digest: str
    """Of `sample_bytes` of its content."""


@dataclass(kw_only=True, slots=True)
class Inputs:
    """The record."""

    sample_bytes: int
    """How much of each file its digest is of: all of a file that is no larger."""

    tokenizer: dict[str, str]
    """File -> digest of its content."""

    files: dict[str, dict[str, FileFact]]
    """Source or held-out set -> file -> what is known of it."""


@dataclass(kw_only=True, slots=True)
class Difference:
    """Between what a source or held-out set was and what it is."""

    changed: list[str] = field(default_factory=list)
    """Of each file with other content, and each that is new or gone: which and how."""

    touched: list[str] = field(default_factory=list)
    """Files with another time, of which only a sample was compared, and is the same."""


def load_inputs(folder: Path) -> Inputs | None:
    """The record in the folder; None if there is none. Raises ValueError if it cannot be read."""
    path = folder / INPUTS_FILE
    if not path.is_file():
        return None
    try:
        inputs = Inputs(**json.loads(path.read_bytes()))
        inputs.files = {
            owner: {name: FileFact(*fact) for name, fact in facts.items()}
            for owner, facts in inputs.files.items()
        }
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} cannot be read ({error}). Restore it, or remove it: then nothing tells "
            "whether tokenizer and data are still the same."
        ) from error
    return inputs


def save_inputs(
    folder: Path,
    tokenizer: Mapping[str, str],
    files: Mapping[str, Sequence[SourceFile]],
    known: Inputs | None,
) -> None:
    """Write the record. What is `known` of a file, and has the same size and time, is not read
    again. Readers see the old record or the new one, nothing between. Raises OSError."""
    count = sum(map(len, files.values()))
    sample_bytes = max(_MIN_SAMPLE_BYTES, _BUDGET_BYTES // max(count, 1))
    if known is not None:  # its digests are of so much
        sample_bytes = known.sample_bytes
    facts = dict(zip(files, _collect_facts(files, sample_bytes, known), strict=True))
    inputs = Inputs(sample_bytes=sample_bytes, tokenizer=dict(tokenizer), files=facts)
    unfinished = folder / f"{INPUTS_FILE}.unfinished"
    with unfinished.open("w", encoding="utf-8") as stream:
        json.dump(asdict(inputs), stream)
        stream.flush()
        os.fsync(stream.fileno())
    unfinished.replace(folder / INPUTS_FILE)


def compare_files(inputs: Inputs, owner: str, files: Sequence[SourceFile]) -> Difference:
    """Raises OSError."""
    known, difference = inputs.files[owner], Difference()
    here = {file.name: file for file in files}
    difference.changed = [f"{name} is not there any more" for name in known if name not in here]
    suspects = []
    for file in files:
        fact = known.get(file.name)
        if fact is None:
            difference.changed.append(f"{file.path} is new")
        elif fact.num_bytes != file.num_bytes:
            difference.changed.append(f"{file.path} has {file.num_bytes} bytes, not {fact[0]}")
        elif fact.mtime_ns != file.mtime_ns:
            suspects.append((file, fact))
    digests = _digest_all([file for file, _ in suspects], inputs.sample_bytes)
    for (file, fact), digest in zip(suspects, digests, strict=True):
        if digest != fact.digest:
            difference.changed.append(f"{file.path} has the same size but other content")
        elif file.num_bytes > inputs.sample_bytes:
            difference.touched.append(str(file.path))
    return difference


def compare_tokenizers(known: Mapping[str, str], present: Mapping[str, str]) -> list[str]:
    """The files that differ."""
    return sorted(name for name in {**known, **present} if known.get(name) != present.get(name))


def check_recorded_tokenizer(run: Path, path: str) -> None:
    """Raise ValueError if `tokenizer.path` has another content than when the run began."""
    inputs = load_inputs(run)
    if inputs is None:
        return
    present = digest_tokenizer(Path(resolve_tokenizer_path(path)))
    changed = compare_tokenizers(inputs.tokenizer, present)
    if changed:
        raise ValueError(
            f"tokenizer.path ({path}) has another {' and another '.join(changed)} than when the "
            f"run in {run} began. Restore the file."
        )


def shorten_list(found: Sequence[str]) -> str:
    """The first few, and how many more there are."""
    more = len(found) - _NUM_SHOWN
    return ", ".join(found[:_NUM_SHOWN]) + (f" and {more} more" if more > 0 else "")


def group_by_owner(files: Iterable[SourceFile]) -> dict[str, list[SourceFile]]:
    """The files of each source, by what error messages call it."""
    groups: dict[str, list[SourceFile]] = {}
    for file in files:
        groups.setdefault(file.option, []).append(file)
    return groups


def _collect_facts(
    files: Mapping[str, Sequence[SourceFile]], sample_bytes: int, known: Inputs | None
) -> Iterator[dict[str, FileFact]]:
    for owner, own in files.items():
        old = known.files.get(owner, {}) if known else {}
        unread = [file for file in own if not _is_known(file, old)]
        digests = dict(
            zip((file.name for file in unread), _digest_all(unread, sample_bytes), strict=True)
        )
        yield {
            file.name: FileFact(
                file.num_bytes,
                file.mtime_ns,
                digests[file.name] if file.name in digests else old[file.name].digest,
            )
            for file in own
        }


def _is_known(file: SourceFile, facts: Mapping[str, FileFact]) -> bool:
    fact = facts.get(file.name)
    return fact is not None and (fact.num_bytes, fact.mtime_ns) == (file.num_bytes, file.mtime_ns)


def _digest_all(files: Sequence[SourceFile], sample_bytes: int) -> list[str]:
    """Many at a time: a shared file system takes its time for each."""
    with ThreadPoolExecutor(_NUM_READERS) as pool:
        return [*pool.map(lambda file: _digest(file, sample_bytes), files)]


def _digest(file: SourceFile, sample_bytes: int) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with file.path.open("rb", buffering=0) as stream:
        for begin, length in _spread(file.num_bytes, sample_bytes):
            stream.seek(begin)
            digest.update(stream.read(length))
    return digest.hexdigest()


def _spread(num_bytes: int, sample_bytes: int) -> Iterator[tuple[int, int]]:
    """(begin, length) of what is read: the file, or places from its first byte to its last."""
    if num_bytes <= sample_bytes:
        yield from ((b, min(2**20, num_bytes - b)) for b in range(0, num_bytes, 2**20))
        return
    count = max(3, sample_bytes // _BLOCK_BYTES)
    length = sample_bytes // count
    for place in range(count):
        yield (num_bytes - length) * place // (count - 1), length
