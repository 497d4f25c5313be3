"""Whether tokenizer and data are those that the run in a directory began with. Free of torch.

Only rank 0 comes here: no other rank reads more than it did. Ranks are compared with each other
when they meet (agreement.py).
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from recipes.config.parts import build_data, build_validation_sets
from recipes.config.paths import CONFIG_FILE
from recipes.config.settings import Settings, SettingsError
from recipes.data.config import HUB, DataConfig, DocumentsConfig, ValidationSetConfig
from recipes.data.inputs import (
    Difference,
    check_recorded_tokenizer,
    compare_files,
    compare_tokenizers,
    load_inputs,
    save_inputs,
    shorten_list,
)
from recipes.data.sources import SourceFile, find_files, find_set_files
from recipes.data.splits import is_hub_folder, split_hub_path
from recipes.data.tokenizer import digest_tokenizer, resolve_tokenizer_path
from recipes.data.vocabulary import compare_vocabularies


def check_inputs(settings: Settings, option: str = "job.dump_folder") -> list[str]:
    """What differs from what the run in the directory began with and does not matter, one line
    each; [] for a new run.

    option: what the user named the directory by, for messages.

    Raises SettingsError for another tokenizer, or other data unless they start anew, OSError for a
    file that cannot be read.
    """
    folder = Path(settings.values["job"]["dump_folder"])
    try:
        inputs = load_inputs(folder) if (folder / CONFIG_FILE).exists() else None
    except ValueError as error:
        raise SettingsError(f"{option}: {error}") from error
    if inputs is None:
        return []
    try:
        check_recorded_tokenizer(folder, settings.values["tokenizer"]["path"])
    except ValueError as error:
        raise SettingsError(f"{error} Or name another {option}.") from error
    changes: list[str] = []
    checkpoint = settings.values["checkpoint"]
    # With an initial checkpoint the exclusion is of that one: the run's own are loaded whole.
    may_start_anew = checkpoint["initial_load_path"] is None
    starts_anew = may_start_anew and "dataloader" in checkpoint["exclude_from_loading"]
    anew = 'start the data anew by checkpoint.exclude_from_loading = ["dataloader"], '
    for owner, files in _find_groups(settings).items():
        if owner not in inputs.files:
            continue
        difference = compare_files(inputs, owner, files)
        if difference.changed and owner.startswith("data.") and not starts_anew:
            raise SettingsError(
                f"{owner} is not what it was when the run in {folder} began: "
                f"{shorten_list(difference.changed)}. Restore that, "
                f"{anew if may_start_anew else ''}or name another {option}."
            )
        changes += _describe(owner, difference)
    return changes


def save_run_inputs(settings: Settings) -> None:
    """Record what the run reads in its directory. Raises OSError."""
    folder = Path(settings.values["job"]["dump_folder"])
    known = load_inputs(folder) if (folder / CONFIG_FILE).exists() else None
    save_inputs(folder, _digest_tokenizer(settings), _find_groups(settings), known)


def check_weights_tokenizer(settings: Settings) -> list[str]:
    """What `tokenizer.path` does otherwise than the tokenizer of the weights that a new run starts
    from, one line; [] if nothing, or there is none: it lies beside Hugging Face weights, and a run
    has a record of its own.

    Raises SettingsError where Hugging Face weights would get the ids of other tokens.
    """
    checkpoint, path = settings.values["checkpoint"], settings.values["tokenizer"]["path"]
    weights = checkpoint["initial_load_path"]
    if weights is None or Path(settings.values["job"]["dump_folder"], CONFIG_FILE).exists():
        return []  # looked at when the run began
    subject = f"tokenizer.path ({path})"
    if not checkpoint["initial_load_in_hf"]:
        changed = _compare_with_run(settings, Path(weights))
        what = f"the run of checkpoint.initial_load_path ({weights}) had"
        differing = " and another ".join(changed)
        return [f"{subject} has another {differing} than {what}."] if changed else []
    if not Path(weights, "tokenizer.json").is_file():
        return []
    where = f"the tokenizer beside the weights of checkpoint.initial_load_path ({weights})"
    try:
        notes = compare_vocabularies(Path(resolve_tokenizer_path(path)), Path(weights))
    except ValueError as error:
        raise SettingsError(
            f"{subject} {error}, beside {where}. Set tokenizer.path to that folder, or to a "
            "tokenizer that keeps its ids."
        ) from error
    return [f"{subject} differs from {where}: {'; '.join(notes)}."] if notes else []


def _compare_with_run(settings: Settings, checkpoint: Path) -> list[str]:
    """The files of the tokenizer that are others than those of the run whose checkpoint it is."""
    for folder in checkpoint.absolute().parents:
        inputs = load_inputs(folder) if (folder / CONFIG_FILE).exists() else None
        if inputs is not None:
            return compare_tokenizers(inputs.tokenizer, _digest_tokenizer(settings))
    return []


def _digest_tokenizer(settings: Settings) -> dict[str, str]:
    return digest_tokenizer(Path(resolve_tokenizer_path(settings.values["tokenizer"]["path"])))


def _find_groups(settings: Settings) -> dict[str, list[SourceFile]]:
    """Source or held-out set -> its files; sets by their names, as there may be more of them."""
    data, sets = build_data(settings), build_validation_sets(settings)
    groups = {}
    for index, (source, files) in enumerate(zip(data.sources, _find(data), strict=True)):
        groups[f"data.sources[{index}]"] = [*files, *_find_in_hub_folder(source)]
    for held_out, files in zip(sets, _find_sets(data, sets), strict=True):
        groups[f'validation.sets "{held_out.name}"'] = [*files, *_find_in_hub_folder(held_out)]
    return groups


def _find(data: DataConfig) -> Iterator[list[SourceFile]]:
    files = find_files(data)
    for index in range(len(data.sources)):
        yield [file for file in files if file.source == index]


def _find_sets(data: DataConfig, sets: Sequence[ValidationSetConfig]) -> list[list[SourceFile]]:
    return find_set_files(data, sets) if sets else []


def _find_in_hub_folder(source: DocumentsConfig) -> Iterator[SourceFile]:
    """The files of a data set that is a folder of this machine."""
    name, _ = split_hub_path(source.path)
    if not source.path.startswith(HUB) or not is_hub_folder(name):
        return
    for folder, _, files in os.walk(name):
        for file in sorted(files):
            path = Path(folder, file)
            status = path.stat()
            yield SourceFile(
                path=path,
                name=path.relative_to(name).as_posix(),
                num_bytes=status.st_size,
                source=0,
                option="",
                mtime_ns=status.st_mtime_ns,
            )


def _describe(owner: str, difference: Difference) -> Iterator[str]:
    if difference.changed:
        yield f"{owner}: {shorten_list(difference.changed)}"
    if difference.touched:
        names = shorten_list(difference.touched)
        yield f"{owner}: the time of {names}; size and a sample of the content are the same"
