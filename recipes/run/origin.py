"""What a run started from: an export still knows it when the folder is gone. Free of torch.

Of Hugging Face weights: their config.json and generation_config.json, of which training reads only
what the model computes. Of a checkpoint of another run: what that one started from.
"""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import tomli

from recipes.config.paths import CONFIG_FILE, ORIGIN_FILE
from recipes.config.values import NONE
from recipes.models.hf.weights import read_json_object

_CONFIG, _GENERATION = "config.json", "generation_config.json"


@dataclass(kw_only=True, slots=True, frozen=True)
class Origin:
    """Where the first weights of a run come from."""

    source: str
    """The name of the folder, and of a checkpoint its run's."""

    first_step: int = 1
    """The first step of this run: later than 1 if it took over a checkpoint's step too."""

    config: dict[str, Any] | None = None
    """config.json of the Hugging Face weights that it goes back to; None without such."""

    generation_config: dict[str, Any] | None = None
    """Their generation_config.json; None if there is none."""


def read_origin(path: Path, *, is_hf: bool) -> Origin:
    """Of checkpoint.initial_load_path. Raises ValueError, one line, for a file of it that is no
    JSON object."""
    if is_hf:
        config, generation = (path / name for name in (_CONFIG, _GENERATION))
        return Origin(
            source=path.name,
            config=read_json_object(config) if config.is_file() else None,
            generation_config=read_json_object(generation) if generation.is_file() else None,
        )
    run = next((parent for parent in path.parents if (parent / CONFIG_FILE).is_file()), None)
    if run is None:
        return Origin(source=path.name)
    earlier = load_origin(run)
    if earlier is None:
        return Origin(source=f"{run.name}/{path.name}")
    return replace(earlier, source=f"{run.name}/{path.name}", first_step=1)


def save_origin(origin: Origin, run: Path) -> None:
    """Readers see the old file or the new one, nothing between."""
    path = run / ORIGIN_FILE
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(asdict(origin), indent=2) + "\n", encoding="utf-8")
    unfinished.replace(path)


def load_origin(run: Path) -> Origin | None:
    """Of a run directory; None for a run that started from none. Raises ValueError, one line."""
    config = run / CONFIG_FILE
    try:
        checkpoint = tomli.loads(config.read_text(encoding="utf-8")).get("checkpoint", {})
    except (OSError, ValueError) as error:
        raise ValueError(f"{config} cannot be read ({error}). Restore it.") from error
    initial = checkpoint.get("initial_load_path", NONE)
    if initial == NONE:
        return None
    path = run / ORIGIN_FILE
    if not path.is_file():  # nothing but its name is known
        return Origin(source=Path(initial).name)
    try:
        return Origin(**read_json_object(path))
    except TypeError as error:
        raise ValueError(f"{path} is not what a run wrote ({error}). Restore it.") from error
