"""What checkpoint.initial_load_path names: the weights, or a folder near them. Free of torch."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recipes.config.paths import CONFIG_FILE

OPTION = "checkpoint.initial_load_path"


def check_initial_load(values: Mapping[str, Mapping[str, Any]], *, must_exist: bool) -> None:
    """Raise ValueError unless the folder that a run starts from has what it should have. A run that
    resumes does not look at it."""
    checkpoint = values["checkpoint"]
    text = checkpoint["initial_load_path"]
    own = Path(values["job"]["dump_folder"], checkpoint["folder"])
    if not checkpoint["enable"] or text is None or "://" in text or _find_steps(own):
        return
    path = Path(text)
    if not path.exists() and not must_exist:
        return
    if not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        raise ValueError(f"{OPTION} ({text}) must be a folder, and {what}. Name another.")
    is_dcp = (path / ".metadata").is_file()
    is_hf = any(path.glob("*.safetensors")) or (path / "config.json").is_file()
    wants_hf = checkpoint["initial_load_in_hf"]
    if is_hf if wants_hf else is_dcp:
        return
    if wants_hf and is_dcp:
        raise ValueError(
            f"{OPTION} ({text}) is a DCP checkpoint, and checkpoint.initial_load_in_hf is true. "
            "Set it to false and checkpoint.allow_pickle to true, or export the checkpoint."
        )
    if is_hf:
        raise ValueError(
            f"{OPTION} ({text}) has Hugging Face weights. Set checkpoint.initial_load_in_hf = true."
        )
    steps = _find_steps(path) or [s for folder in path.glob("*") for s in _find_steps(folder)]
    if steps:
        what = "a run directory" if (path / CONFIG_FILE).is_file() else "a folder of checkpoints"
        latest = max(steps, key=_number)
        raise ValueError(f"{OPTION} ({text}) is {what}. Name one of its checkpoints: {latest}.")
    fault = "complete DCP checkpoint: it has no .metadata, which a save writes last"
    if wants_hf:
        fault = "config.json and no *.safetensors, which Hugging Face weights have"
    raise ValueError(f"{OPTION} ({text}) has no {fault}. Name another folder.")


def _find_steps(folder: Path) -> list[Path]:
    """The folders `step-N` in it whose save has ended."""
    return [path.parent for path in folder.glob("step-*/.metadata") if _number(path.parent) >= 0]


def _number(folder: Path) -> int:
    match = re.fullmatch(r"step-(\d+)", folder.name)
    return int(match[1]) if match else -1
