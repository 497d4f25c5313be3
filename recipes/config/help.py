"""The text of `--help`: every option with its type, its default and its docstring."""

import textwrap
from collections.abc import Sequence
from dataclasses import MISSING

from recipes.config.fields import Option
from recipes.config.lookup import SettingsError, nearest
from recipes.config.schema import Schema
from recipes.config.values import describe_type, show_value

WIDTH = 100

_USAGE = """\
Options are keys of TOML tables. Give a file with --job.config_file FILE; override one key with
--table.key VALUE or --table.key=VALUE, a boolean also with --table.key alone. Lists are a,b or
[a, b]; an array of tables is '[{path = "x"}]'. TOML has no null: where the type says so, "none"
stands for no value. --help TABLE and --help TABLE.KEY show a part of this text.
"""


def format_help(schema: Schema, topic: str | None) -> str:
    """All tables, one table (`nitp`) or one option (`nitp.weight`), wrapped to 100 columns.

    Raises SettingsError for a topic that is neither.
    """
    if topic is None:
        return "\n".join([_USAGE, *(_format_table(name, schema) for name in schema)])
    options = {f"{t}.{key}": (t, option) for t in schema for key, option in schema[t].items()}
    if topic in schema:
        return _format_table(topic, schema)
    if topic not in options:
        hint = nearest(topic, [*schema, *options]) or f" Tables: {', '.join(schema)}."
        raise SettingsError(f"--help: {topic} is not a table or option.{hint}")
    return _format_option(*options[topic])


def find_topics(arguments: Sequence[str]) -> list[str] | None:
    """What follows `--help`, wherever that is; None without it."""
    for i, argument in enumerate(arguments):
        name, has_topic, topic = argument.partition("=")
        if name == "--help" or (i == 0 and name == "-h"):
            topics = [*([topic] if has_topic else []), *arguments[i + 1 :]]
            return [topic.removeprefix("--") for topic in topics]
    return None


def _format_table(table: str, schema: Schema) -> str:
    header = f"[[{table}]]" if "." in table else f"[{table}]"
    options = [_format_option(table, option) for option in schema[table].values()]
    return "\n".join([header, *options]) + "\n"


def _format_option(table: str, option: Option) -> str:
    if option.required:
        default = "required"
    elif option.default is MISSING:
        default = "default: the flavor's"
    else:
        default = f"default {show_value(option.default)}"
    title = f"{table}.{option.name}: {describe_type(option.type)}; {default}"
    lines = [textwrap.fill(title, WIDTH, initial_indent="  ", subsequent_indent="      ")]
    for block in _split_blocks(option.doc):
        lines.append(textwrap.fill(block, WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6))
    return "\n".join(lines)


def _split_blocks(doc: str) -> list[str]:
    """Paragraphs and list items; the line breaks inside them are the source's, not the reader's."""
    blocks: list[str] = []
    starts = True
    for line in map(str.strip, doc.splitlines()):
        if line and (starts or line.startswith("- ")):
            blocks.append(line)
        elif line:
            blocks[-1] += f" {line}"
        starts = not line
    return blocks
