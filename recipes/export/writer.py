"""Writes sharded safetensors tensor by tensor, into a folder that appears only when complete.

The safetensors library writes a file from a dictionary that holds all of its tensors. A model that
does not fit in memory must be streamed, so the format (length, JSON header, bytes) is written here;
the library reads it back in verification.
"""

import fcntl
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from recipes.models.hf.mapping import Entry
from recipes.models.hf.weights import INDEX_NAME

MAX_SHARD_BYTES = 4 * 2**30

_DTYPE_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


@contextmanager
def staged_folder(output: Path) -> Iterator[Path]:
    """A new folder beside `output` that takes its name when the block ends.

    An exception removes it. A kill leaves it under its hidden name, which nothing takes for an
    export, and the next export to `output` clears it. Raises ValueError if `output` exists or
    another export is writing it.
    """
    if os.path.lexists(output):
        raise ValueError(f"{output} exists. Remove it, or name another output.")
    staging = output.with_name(f".{output.name}.partial")
    staging.mkdir(parents=True, exist_ok=True)
    handle = os.open(staging, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ends with this process
        except BlockingIOError:
            raise ValueError(f"{output} is being written by another export.") from None
        try:
            _clear(staging)
            yield staging
            os.fsync(handle)
            staging.rename(output)
        except BaseException:
            shutil.rmtree(staging)
            raise
    finally:
        os.close(handle)


def _clear(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def plan_shards(entries: list[Entry], max_shard_bytes: int) -> dict[str, list[Entry]]:
    """File name -> its entries, in order, up to `max_shard_bytes` each (at least one entry)."""
    shards: list[list[Entry]] = []
    size = math.inf
    for entry in entries:
        if size + entry.num_bytes > max_shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(entry)
        size += entry.num_bytes
    count = len(shards)
    return {
        # Wider dtypes first: readers map tensors in place, at offsets aligned to their dtype.
        f"model-{i:05d}-of-{count:05d}.safetensors": sorted(
            shard, key=lambda entry: -entry.dtype.itemsize
        )
        for i, shard in enumerate(shards, start=1)
    }


def write_weights(
    folder: Path,
    entries: list[Entry],
    load: Callable[[str], dict[str, torch.Tensor]],
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write all entries and their index.

    `load(source)` returns that source's tensors by entry name; it is called for one source at a
    time. Raises ValueError for a value that is not finite in the entry's dtype.
    """
    shards = plan_shards(entries, max_shard_bytes)
    source: str | None = None
    tensors: dict[str, torch.Tensor] = {}
    for file_name, shard in shards.items():
        with open(folder / file_name, "wb") as file:
            file.write(_header(shard))
            for entry in shard:
                if entry.source != source:
                    tensors = {}  # before the next source takes its memory
                    source, tensors = entry.source, load(entry.source)
                file.write(_bytes_of(tensors[entry.name], entry))
            file.flush()
            os.fsync(file.fileno())
    index = {
        "metadata": {
            "total_parameters": sum(entry.num_params for entry in entries),
            "total_size": sum(entry.num_bytes for entry in entries),
        },
        "weight_map": {entry.name: name for name, shard in shards.items() for entry in shard},
    }
    write_json(folder / INDEX_NAME, index)


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _header(shard: list[Entry]) -> bytes:
    # "pt" is what PyTorch readers, transformers among them, require.
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for entry in shard:
        header[entry.name] = {
            "dtype": _DTYPE_NAMES[entry.dtype],
            "shape": entry.shape,
            "data_offsets": [offset, offset + entry.num_bytes],
        }
        offset += entry.num_bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _bytes_of(tensor: torch.Tensor, entry: Entry) -> Any:
    """A buffer of the tensor's bytes, row-major."""
    assert tuple(tensor.shape) == entry.shape, entry.name
    tensor = tensor.to(entry.dtype).contiguous()
    if not tensor.isfinite().all():
        raise ValueError(f"{entry.source} has values that are not finite as {entry.dtype}.")
    return tensor.reshape(-1).view(torch.uint8).numpy()
