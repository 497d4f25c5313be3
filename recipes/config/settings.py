"""Settings of a run: TOML files and command line, checked against the schema, resolved, saved.

Free of torch: a mistake is one line, before anything heavy is imported.
"""

import os
from collections.abc import Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import tomli_w

from recipes.characters import find_fault
from recipes.config.arguments import parse_overrides
from recipes.config.fields import Option
from recipes.config.idle import settle_idle
from recipes.config.lookup import COMMAND_LINE, check_table, find_option
from recipes.config.lookup import SettingsError as SettingsError
from recipes.config.lookup import nearest as nearest
from recipes.config.paths import CONFIG_FILE, PATHS, expand_path
from recipes.config.schema import Schema, activation_checkpoint_options, load_schema
from recipes.config.toml_file import read_toml
from recipes.config.values import NONE, convert_value, describe_type, parse_text, show_value, walk

_COMMAND_LINE_RANK = 1_000_000
"""Above that of any file."""


@dataclass(slots=True, frozen=True)
class Settings:
    """Resolved settings: every option that has a value."""

    values: dict[str, dict[str, Any]]
    """Table -> key -> value. Overrides of the model's shape are present only where set."""

    origin: dict[str, str]
    """`table.key` -> the file that set it, or "command line". Defaults are absent."""


class _Given(NamedTuple):
    value: Any
    where: str
    rank: int
    """How specific: a file more than those it extends, of these a later one more than one before,
    and the command line more than any file. Its arguments are equals, in whatever order."""


def resolve_settings(path: str | None, overrides: Sequence[str], *more: Sequence[str]) -> Settings:
    """Defaults, then the file `path` and what it extends, then `--table.key value` overrides.

    more: a program's further overrides, each list more specific than the one before. Within a list
    all are equals, and the last of an option given twice counts; of a user that is refused
    (check_arguments). `--job.config_file` among the overrides stands for `path`. Neither
    `job.config_file` nor `job.extends` is part of the result. Raises SettingsError.
    """
    schema = load_schema()
    given: dict[str, _Given] = {}
    for i, arguments in enumerate((overrides, *more)):
        given = _merge(given, _load_overrides(arguments, schema, _COMMAND_LINE_RANK + i))
    if "job.config_file" in given:
        if path is not None:
            raise SettingsError(f"{COMMAND_LINE}: job.config_file is given beside {path}.")
        path = given.pop("job.config_file").value
    if path is not None:
        given = _merge(_load_file(path, schema, ()), given)
    values: dict[str, dict[str, Any]] = {}
    for table, options in _select_options(schema, given).items():
        values[table] = {}
        for key, option in options.items():
            name = f"{table}.{key}"
            if name in given:
                values[table][key] = given[name].value
            elif option.required:
                raise SettingsError(
                    f"{path or COMMAND_LINE}: {name} is not set. See --help {table}."
                )
            elif option.default is not MISSING:
                values[table][key] = convert_value(option.default, option.type)
    origin = {name: entry.where for name, entry in given.items()}
    try:
        settle_idle(values, {name: entry.rank for name, entry in given.items()}, schema)
    except ValueError as error:
        name, _, _ = str(error).partition(" ")
        raise SettingsError(f"{origin[name]}: {error}") from None
    return Settings(values, origin)


def save_settings(settings: Settings, path: str | Path) -> None:
    """Write all values as one TOML file that resolves, on its own, to the same values."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(tomli_w.dumps(_spell_none(settings.values)), encoding="utf-8")


def _spell_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _spell_none(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_spell_none(item) for item in value]
    return NONE if value is None else value


def _select_options(schema: Schema, given: dict[str, _Given]) -> Schema:
    """The options that this run has. Raises SettingsError if one is given that it has not."""
    table = "activation_checkpoint"
    mode = given[f"{table}.mode"].value if f"{table}.mode" in given else "none"
    in_mode = activation_checkpoint_options(mode)
    for name, (_, where, _) in given.items():
        if name.startswith(f"{table}.") and name.removeprefix(f"{table}.") not in in_mode:
            raise SettingsError(
                f"{where}: {name} is not an option of {table}.mode = {show_value(mode)}, "
                f"which has {', '.join(sorted(in_mode))}."
            )
    selected = {name: dict(options) for name, options in schema.items() if "." not in name}
    selected[table] = {key: option for key, option in selected[table].items() if key in in_mode}
    del selected["job"]["config_file"], selected["job"]["extends"]
    return selected


def _merge(lower: dict[str, _Given], upper: dict[str, _Given]) -> dict[str, _Given]:
    """Upper wins, key by key. A new activation checkpointing mode drops what it does not have:
    the lower file's options belong to the lower file's mode."""
    table = "activation_checkpoint"
    if mode := upper.get(f"{table}.mode"):
        kept = activation_checkpoint_options(mode.value)
        lower = {
            name: given
            for name, given in lower.items()
            if not name.startswith(f"{table}.") or name.removeprefix(f"{table}.") in kept
        }
    return lower | upper


def _load_file(
    path: str, schema: Schema, chain: tuple[str, ...], above: int = 0
) -> dict[str, _Given]:
    """What the file and the files it extends give; `chain` are the files that led here. Ranks are
    greater than `above`."""
    path = os.path.normpath(path)
    if any(os.path.realpath(path) == os.path.realpath(seen) for seen in chain):
        raise SettingsError(f"{chain[-1]}: job.extends is a cycle: {' -> '.join((*chain, path))}.")
    values: dict[str, Any] = {}
    for table, entries in _load_toml(path, chain).items():
        check_table(table, entries, schema, path)
        for key, value in entries.items():
            option = find_option(table, key, schema, path)
            values[f"{table}.{key}"] = _check_option(table, option, value, schema, path)
    if "job.config_file" in values:
        raise SettingsError(
            f"{path}: job.config_file belongs on the command line; in a file use job.extends."
        )
    inherited: dict[str, _Given] = {}
    if "job.extends" in values:
        bases = values.pop("job.extends") or []
        for base in [bases] if isinstance(bases, str) else bases:
            base_path = os.path.join(os.path.dirname(path), base)
            loaded = _load_file(base_path, schema, (*chain, path), above)
            above = max((above, *(entry.rank for entry in loaded.values())))
            inherited = _merge(inherited, loaded)
    rank = above + 1
    return _merge(inherited, {name: _Given(value, path, rank) for name, value in values.items()})


def _load_toml(path: str, chain: tuple[str, ...]) -> dict[str, Any]:
    by = f"{chain[-1]}: job.extends: " if chain else ""
    try:
        return read_toml(path)
    except FileNotFoundError:
        folder, name = os.path.split(path)
        siblings = [entry.name for entry in Path(folder or ".").glob("*.toml")]
        hint = nearest(name, siblings, os.path.join(folder, ""))
        raise SettingsError(f"{by}{path} does not exist.{hint}") from None
    except OSError as error:
        own = os.path.join(path, CONFIG_FILE)  # of a run directory
        hint = f" Did you mean {own}?" if os.path.isfile(own) else ""
        raise SettingsError(f"{by}{path} cannot be read: {error.strerror}.{hint}") from None
    except ValueError as error:
        raise SettingsError(str(error)) from None


def _load_overrides(arguments: Sequence[str], schema: Schema, rank: int) -> dict[str, _Given]:
    given: dict[str, _Given] = {}
    for name, text in parse_overrides(arguments).items():
        table, _, key = name.partition(".")
        option = schema[table][key]
        value = _check_option(table, option, parse_text(text, option.type), schema, COMMAND_LINE)
        given[name] = _Given(value, COMMAND_LINE, rank)
    if "job.extends" in given:
        raise SettingsError(
            f"{COMMAND_LINE}: job.extends belongs in a file; here use --job.config_file."
        )
    return given


def _check_option(table: str, option: Option, value: Any, schema: Schema, where: str) -> Any:
    """The value as the option's type; of an array of tables each entry, completed by defaults."""
    name = f"{table}.{option.name}"
    for part in () if name in schema else walk(value):
        if isinstance(part, str) and (fault := find_fault(part)):
            raise SettingsError(f"{where}: {name} ({show_value(part)}) {fault}. Remove it.")
        if isinstance(part, int) and not -(2**63) <= part < 2**63:
            raise SettingsError(f"{where}: {name} has a number that takes more than 64 bits.")
    try:
        value = convert_value(value, option.type)
    except TypeError:
        expected = describe_type(option.type)
        raise SettingsError(f"{where}: {name} ({show_value(value)}) must be {expected}.") from None
    if name in PATHS and value != option.default:
        return _expand(name, value, where)
    if name in schema:
        return [_check_entry(name, entry, schema, where) for entry in value]
    return value


def _expand(name: str, value: Any, where: str) -> Any:
    if isinstance(value, list):
        return [_expand(name, path, where) for path in value]
    try:
        return None if value is None else expand_path(value)
    except ValueError as error:
        raise SettingsError(f"{where}: {name} ({show_value(value)}) {error}") from None


def _check_entry(table: str, entry: dict[str, Any], schema: Schema, where: str) -> dict[str, Any]:
    given = {
        key: _check_option(table, find_option(table, key, schema, where), value, schema, where)
        for key, value in entry.items()
    }
    for key, option in schema[table].items():
        if option.required and key not in given:
            raise SettingsError(f"{where}: {table}.{key} is not set in every [[{table}]].")
    return {key: given.get(key, option.default) for key, option in schema[table].items()}
