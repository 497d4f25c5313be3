"""Which files of a Hugging Face folder hold its weights: those that transformers reads.

TorchTitan's reader takes every *.safetensors file of a folder: of shards of an earlier save, or
another library's copy of the weights beside them, it takes what comes last.
"""

import functools
import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch.distributed.checkpoint import HuggingFaceStorageReader
from torch.distributed.checkpoint.filesystem import FileSystem
from torchtitan.protocols.state_dict_adapter import BaseStateDictAdapter

SINGLE_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"


def find_weight_files(folder: Path) -> list[Path]:
    """The files that the index names, or without an index the single file.

    Raises ValueError, one line, if there is neither, a file is missing, or both would do.
    """
    single, index = folder / SINGLE_NAME, folder / INDEX_NAME
    names = set(_read_index(index).values()) if index.is_file() else {SINGLE_NAME}
    if not single.is_file() and not index.is_file():
        raise ValueError(
            f"{folder} has neither {SINGLE_NAME} nor {INDEX_NAME}: no weights that transformers' "
            "save_pretrained wrote as safetensors."
        )
    if single.is_file() and SINGLE_NAME not in names:
        raise ValueError(
            f"{folder} has {INDEX_NAME}, and {SINGLE_NAME}, which is not in it: one of them is a "
            "leftover. Remove the one that is not meant."
        )
    files = [folder / name for name in sorted(names)]
    for file in files:
        if not file.is_file():
            raise ValueError(f"{index} names {file.name}, which is missing. Download it again.")
    return files


def read_weights(folder: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """(shape, dtype as safetensors names it) of each tensor.

    Raises ValueError, one line, as `find_weight_files`; for a file that is damaged or cannot be
    read; and unless each file holds exactly the tensors that the index places in it.
    """
    index = folder / INDEX_NAME
    places = _read_index(index) if index.is_file() else None
    tensors: dict[str, tuple[tuple[int, ...], str]] = {}
    for path in find_weight_files(folder):
        found = _read_header(path)
        if places is not None:
            _check_index(path, found.keys(), places)
        tensors |= found
    return tensors


@functools.cache
def as_transformers_reads(adapter: type[BaseStateDictAdapter]) -> type[BaseStateDictAdapter]:
    """A subclass whose reader takes the weights from `find_weight_files`, and from no other."""

    class IndexedStateDictAdapter(adapter):
        def get_hf_storage_reader(
            self, path: str, from_quantized: bool = False
        ) -> HuggingFaceStorageReader:
            reader = super().get_hf_storage_reader(path, from_quantized)
            reader.fs = _Listing(find_weight_files(Path(path)))
            return reader

    IndexedStateDictAdapter.__name__ = IndexedStateDictAdapter.__qualname__ = adapter.__name__
    return IndexedStateDictAdapter


class _Listing(FileSystem):
    """What the reader asks its file system for is what the folder holds."""

    def __init__(self, files: list[Path]) -> None:
        self._files = [str(file) for file in files]

    def ls(self, path: Any) -> list[str]:
        return self._files


def read_json_object(path: Path) -> dict[str, Any]:
    """Raises ValueError, one line, for a file that cannot be read or is no JSON object."""
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} cannot be read as JSON ({error}). Replace it.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not a JSON object. Replace it.")
    return content


def _read_index(path: Path) -> dict[str, str]:
    """Tensor -> name of its file."""
    places = read_json_object(path).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise ValueError(f"{path} has no weight_map, which says where the tensors are. Replace it.")
    for tensor, name in places.items():
        if not isinstance(name, str) or Path(name).name != name:
            raise ValueError(
                f"{path} places {tensor} in {json.dumps(name)}, no file name. Replace it."
            )
    return places


def _read_header(path: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    try:
        with safe_open(path, framework="pt") as file:
            views = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {n: (tuple(view.get_shape()), view.get_dtype()) for n, view in views.items()}
    except (SafetensorError, OSError) as error:
        # Also what a download leaves that was cut off, or a pointer of Git LFS.
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} is damaged ({reason}). Download it again.") from error


def _check_index(path: Path, found: Any, places: dict[str, str]) -> None:
    for tensor, name in places.items():
        if name == path.name and tensor not in found:
            raise ValueError(
                f"{path.parent / INDEX_NAME} places {tensor} in {path.name}, which does not hold "
                "it. Download both again."
            )
    for tensor in found:
        if places.get(tensor) != path.name:
            where = f"in {places[tensor]}" if tensor in places else "nowhere"
            raise ValueError(
                f"{path} holds {tensor}, which {INDEX_NAME} places {where}. Download both again."
            )
