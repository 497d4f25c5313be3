"""Names of tables and options, and what a wrong one is likely to mean. Free of torch."""

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

from recipes.config.fields import Option
from recipes.config.schema import Schema
from recipes.config.values import show_value

COMMAND_LINE = "command line"
"""In messages and origins, in the place of a file."""


class SettingsError(ValueError):
    """A user's mistake; the message is one line that says where it is and what is valid."""


def nearest(name: str, valid: Sequence[str], before: str = "") -> str:
    """` Did you mean X?` for the closest valid name, or nothing if none is close.

    before: what the user writes in front of it.
    """
    by_lower = {choice.lower(): choice for choice in valid}
    matches = get_close_matches(name.lower(), by_lower, n=1)
    return f" Did you mean {before}{by_lower[matches[0]]}?" if matches else ""


def check_table(table: str, entries: Any, schema: Schema, where: str) -> None:
    tables = [name for name in schema if "." not in name]
    if table not in tables:
        hint = nearest(table, tables) if isinstance(entries, dict) else hint_option(table, schema)
        raise SettingsError(f"{where}: {table} is not a table.{hint}")
    if not isinstance(entries, dict):
        raise SettingsError(f"{where}: {table} ({show_value(entries)}) must be a table, [{table}].")


def find_option(table: str, key: str, schema: Schema, where: str) -> Option:
    if key in schema[table]:
        return schema[table][key]
    hint = nearest(key, list(schema[table]), f"{table}.") or hint_option(key, schema)
    hint = hint or f" See --help {table}."
    raise SettingsError(f"{where}: {table}.{key} is not an option.{hint}")


def hint_option(key: str, schema: Schema, before: str = "") -> str:
    """` Did you mean table.key?` for a key whose table is missing or wrong."""
    names = [f"{table}.{name}" for table, options in schema.items() for name in options]
    homes = [before + name for name in names if name.endswith(f".{key}")]
    return f" Did you mean {' or '.join(homes)}?" if homes else nearest(key, names, before)
