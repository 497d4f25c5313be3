"""Whether all ranks start the same run: configuration, tokenizer, data files and software."""

import hashlib
import json
import platform
from collections.abc import Sequence
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

import torch.distributed as dist

from recipes.config.settings import SettingsError
from recipes.data.config import DataConfig, ValidationSetConfig
from recipes.data.sources import find_files, find_set_files
from recipes.data.tokenizer import digest_tokenizer
from recipes.run.folder import flatten

_NUM_SHOWN = 3


def check_ranks_agree(
    settings: dict[str, dict[str, Any]],
    data: DataConfig,
    sets: Sequence[ValidationSetConfig],
    *,
    tokenizer: str,
) -> None:
    """Raise SettingsError, on every rank, naming the first rank that differs from rank 0 and how.

    Compares the resolved options, the content of the tokenizer in the folder `tokenizer`, name and
    size of every file of sources and held-out sets, and versions. Collective.
    """
    facts = _collect_facts(settings, data, sets, tokenizer)
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).digest()
    digests: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(digests, digest)
    if len(set(digests)) == 1:
        return
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, facts)
    rank = next(r for r, other in enumerate(digests) if other != digests[0])
    first, other = gathered[0], gathered[rank]
    differing = [key for key in first | other if first.get(key) != other.get(key)]
    shown = [f"{key} ({first.get(key)} / {other.get(key)})" for key in differing[:_NUM_SHOWN]]
    more = f" and {len(differing) - _NUM_SHOWN} more" if len(differing) > _NUM_SHOWN else ""
    raise SettingsError(
        f"Ranks 0 and {rank} differ in {', '.join(shown)}{more}. Start all ranks with the same "
        "command, files and software."
    )


def _collect_facts(
    settings: dict[str, dict[str, Any]],
    data: DataConfig,
    sets: Sequence[ValidationSetConfig],
    tokenizer: str,
) -> dict[str, Any]:
    files: dict[str, Any] = {
        f"digest of tokenizer.path's {name}": digest
        for name, digest in digest_tokenizer(Path(tokenizer)).items()
    }
    files |= {f"size of data file {f.name}": f.num_bytes for f in find_files(data)}
    for f in chain(*find_set_files(data, sets)):
        files[f"size of {f.option}'s file {f.name}"] = f.num_bytes
    software = {f"version of {name}": version(name) for name in ("torch", "torchtitan")}
    return flatten(settings) | files | software | {"version of python": platform.python_version()}
