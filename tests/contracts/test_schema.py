"""The schema read from source equals the classes that Python builds from it."""

import dataclasses
import importlib
import re
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest

from recipes.config.fields import read_fields, read_keys
from recipes.config.options import DEFAULTS
from recipes.config.schema import LEFT_OUT, TABLES, load_schema
from recipes.config.values import convert_value

SOURCES = sorted({source for sources in TABLES.values() for source in sources})
NOT_TOML = {
    "dataloader",  # Validator.Config
    "loss_fn",  # ChunkedLossWrapper.Config
    "param_groups",  # OptimizersContainer.Config
    "trace_post_processor",  # Profiler.Config
}


def _import(source: str) -> Any:
    module, name = source.split(":")
    found = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found


@pytest.mark.parametrize("source", SOURCES)
def test_the_fields_read_from_source_are_the_fields_of_the_class(source: str) -> None:
    real = {field.name for field in dataclasses.fields(_import(source))}
    assert real - NOT_TOML == set(read_fields(source))


@pytest.mark.parametrize("source", SOURCES)
def test_defaults_and_types_read_from_source_are_those_of_the_class(source: str) -> None:
    cls = _import(source)
    real = {field.name: field for field in dataclasses.fields(cls)}
    types = get_type_hints(cls)
    for name, option in read_fields(source).items():
        field = real[name]
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        assert option.default == default, name
        assert type(option.default) is type(default), name
        assert option.required == (default is dataclasses.MISSING), name
        if name not in ("sources", "sets"):  # arrays of tables: entries of a class, tables in TOML
            assert option.type == types[name], name


def test_every_default_fits_its_own_type() -> None:
    for table, options in load_schema().items():
        for name, option in options.items():
            if option.default is not dataclasses.MISSING:
                value = convert_value(option.default, option.type)
                assert value == option.default or [*value] == [*option.default], f"{table}.{name}"


def test_project_defaults_and_left_out_fields_exist_upstream() -> None:
    upstream = {
        f"{table}.{name}": option
        for table, sources in TABLES.items()
        for source in sources
        for name, option in read_fields(source).items()
    }
    assert upstream.keys() >= LEFT_OUT
    for key, default in DEFAULTS.items():
        assert upstream[key].default != default, f"{key} is TorchTitan's default already"


def test_two_classes_of_one_table_agree_on_the_options_they_share() -> None:
    for table, sources in TABLES.items():
        seen: dict[str, Any] = {}
        for source in sources:
            for name, option in read_fields(source).items():
                assert seen.setdefault(name, option) == option, f"{table}.{name}"


def test_none_as_a_string_is_ambiguous_in_no_option() -> None:
    for table, options in load_schema().items():
        for name, option in options.items():
            members = get_args(option.type)
            choices = [c for m in members if get_origin(m) is Literal for c in get_args(m)]
            assert not (NoneType in members and "none" in choices), f"{table}.{name}"


def test_the_flavors_read_from_source_are_those_of_torchtitans_registry() -> None:
    module = importlib.import_module("torchtitan.models.llama3")
    assert read_keys("torchtitan.models.llama3", "_configs") == list(module.llama3_configs)


def test_every_torchtitan_model_with_a_registry_has_readable_flavors() -> None:
    from recipes.config.parts import torchtitan_models

    names = torchtitan_models()
    assert {"llama3", "qwen3", "deepseek_v3", "gpt_oss"} <= set(names)
    for name in names:
        flavors = read_keys(f"torchtitan.models.{name}", "_configs")
        assert flavors and all(re.fullmatch(r"[\w.-]+", flavor) for flavor in flavors)
