"""`--table.key value`, on a command line or in a list of a program's. Free of torch."""

from collections.abc import Collection, Mapping, Sequence
from fnmatch import fnmatchcase

from recipes.characters import escape, find_fault
from recipes.config.lookup import (
    COMMAND_LINE,
    SettingsError,
    check_table,
    find_option,
    hint_option,
)
from recipes.config.schema import load_schema


def parse_overrides(arguments: Sequence[str]) -> dict[str, str]:
    """`table.key` -> text, of `--table.key value`, `--table.key=value`, and `--table.key` alone for
    a true boolean; of an option given twice, the last. Raises SettingsError for what is no
    option."""
    schema = load_schema()
    texts: dict[str, str] = {}
    remaining = list(arguments)
    while remaining:
        argument = remaining.pop(0)
        name, has_value, text = argument.removeprefix("--").partition("=")
        table, dot, key = name.partition(".")
        if not argument.startswith("--") or not dot:
            hint = hint_option(name, schema, "--")
            if name.endswith(".toml"):
                hint = f" Did you mean --job.config_file {name}?"
            raise SettingsError(f"{COMMAND_LINE}: {argument} is not --table.key.{hint}")
        check_table(table, {}, schema, COMMAND_LINE)
        option = find_option(table, key, schema, COMMAND_LINE)
        if not has_value:
            follows = remaining and not remaining[0].startswith("--")
            if option.type is bool and not (follows and remaining[0].lower() in ("true", "false")):
                text = "true"
            elif follows:
                text = remaining.pop(0)
            else:
                raise SettingsError(f"{COMMAND_LINE}: --{name} needs a value.")
        texts[name] = text
    return texts


def format_overrides(texts: Mapping[str, str]) -> list[str]:
    """The arguments that `parse_overrides` reads as `texts`."""
    return [f"--{name}={text}" for name, text in texts.items()]


def check_arguments(arguments: Sequence[str], repeatable: Collection[str] = ()) -> None:
    """Raise SettingsError for an option that a user gives twice, of which one would be dropped, and
    for an argument that cannot be saved, or printed."""
    seen: set[str] = set()
    for argument in arguments:
        if fault := find_fault(argument):
            raise SettingsError(
                f"{COMMAND_LINE}: {escape(argument)} {fault}. Rename what it names."
            )
        name = argument.partition("=")[0]
        if name.startswith("--") and name not in repeatable:
            if name in seen:
                raise SettingsError(f"{COMMAND_LINE}: {name} is given twice. Give it once.")
            seen.add(name)


def check_used(arguments: Sequence[str], used: Sequence[str]) -> None:
    """Raise SettingsError for an option that a command other than training takes and does not use;
    `used` are patterns of `table.key`. Files may have all tables."""
    for name, text in parse_overrides(arguments).items():
        if not any(fnmatchcase(name, pattern) for pattern in used):
            raise SettingsError(
                f"{COMMAND_LINE}: {name} ({text}) has no effect here, where "
                f"{', '.join(used)} have. Leave it out."
            )
