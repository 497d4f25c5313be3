"""TOML values and command-line text against the types of `recipes.config.fields.Option`.

TOML has no null: the string "none" means None wherever the type admits None, and only there.
"""

import json
from contextlib import suppress
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import tomli

NONE = "none"

_DESCRIPTIONS: dict[Any, str] = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "a string",
    dict: "a table",
    NoneType: f'"{NONE}"',
    Any: "any value",
}


def convert_value(value: Any, to: Any) -> Any:
    """The value as type `to`: integers become floats where a float is wanted, tuples lists.

    Raises TypeError if the value does not fit; a bool is no integer.
    """
    origin, args = get_origin(to), get_args(to)
    if to is Any:
        return value
    if to is NoneType and value in (None, NONE):
        return None
    if to is float and type(value) in (int, float):
        return float(value) + 0.0  # -0.0 is 0.0, and shown as that
    if to in (bool, int, str, dict) and type(value) is to:
        return value
    if origin is Literal and any(value == c and type(value) is type(c) for c in args):
        return value
    if origin is list and isinstance(value, list):
        return [convert_value(item, args[0]) for item in value]
    if origin is tuple and isinstance(value, list | tuple) and len(value) == len(args):
        return [convert_value(item, arg) for item, arg in zip(value, args, strict=True)]
    if origin is dict and isinstance(value, dict):
        return {key: convert_value(item, args[1]) for key, item in value.items()}
    for member in _union_members(to):
        try:
            return convert_value(value, member)
        except TypeError:
            continue
    raise TypeError(f"{value!r} is not {describe_type(to)}")


def parse_text(text: str, to: Any) -> Any:
    """The TOML value that a command-line argument stands for; text that fits no type stays text.

    Lists are TOML (`[1, 2]`), JSON (`[{"path": "x"}]`) or separated by commas (`1,2`).
    """
    members = _union_members(to) or (to,)
    origins = {get_origin(member) or member: member for member in members}
    if NoneType in origins and text == NONE:
        return NONE
    choices = {str(choice): choice for choice in get_args(origins.get(Literal))}
    if text in choices:
        return choices[text]
    sequence = origins.get(list, origins.get(tuple))
    if sequence is not None and (str not in members or text.startswith("[")):
        if text.startswith("["):
            return _parse_inline(text)
        return [parse_text(part.strip(), get_args(sequence)[0]) for part in text.split(",") if part]
    if bool in origins:
        return {"true": True, "false": False}.get(text.lower(), text)
    for number in (int, float):
        if number in origins:
            try:
                return number(text)
            except ValueError:
                continue
    return text


def describe_type(to: Any) -> str:
    """The type in words that complete "must be ..."."""
    origin, args = get_origin(to), get_args(to)
    if origin is Literal:
        choices = ", ".join(show_value(choice) for choice in args)
        return choices if len(args) == 1 else f"one of {choices}"
    if origin is list:
        return f"a list (each {describe_type(args[0])})"
    if origin is tuple:
        return f"a list of {len(args)} ({', '.join(map(describe_type, args))})"
    if origin is dict:
        return "a table"
    if members := _union_members(to):
        return " or ".join(map(describe_type, reversed(members)))
    return _DESCRIPTIONS[to]


def show_value(value: Any) -> str:
    """The value as the user writes it, on one line."""
    try:
        return json.dumps(NONE if value is None else value, default=str)
    except (RecursionError, ValueError):  # nested by the thousand, or a number of so many digits
        return "..."


def walk(value: Any) -> list[Any]:
    """All that a value holds, keys of tables too, however deep."""
    parts, ahead = [], [value]
    while ahead:
        parts.append(part := ahead.pop())
        if isinstance(part, dict):
            ahead += [*part, *part.values()]
        elif isinstance(part, list):
            ahead += part
    return parts


def _parse_inline(text: str) -> Any:
    with suppress(ValueError, RecursionError):
        return tomli.loads(f"value = {text}")["value"]
    with suppress(ValueError, RecursionError):
        return json.loads(text)
    return text


def _union_members(to: Any) -> tuple[Any, ...]:
    """Members of a union, None first so that "none" is not taken for a string; else ()."""
    if get_origin(to) not in (Union, UnionType):
        return ()
    return tuple(sorted(get_args(to), key=lambda member: member is not NoneType))
