"""NITP's part of a component on top of a user's subclass of TorchTitan's: one class more, made when
it is needed, as `nitp_decoder_class` makes one of a decoder."""

import copy
import functools
from dataclasses import fields, make_dataclass
from typing import Any

from nitp._torchtitan import built_class


@functools.cache
def extended_config(part: Any, config_class: Any) -> Any:
    """The Config of a class that is `part` and what `config_class` builds: one for each pair.

    `part` is NITP's subclass of one of TorchTitan's components, and `config_class` builds that
    component or any subclass. In the new class `part` comes first in the order of resolution,
    so that NITP's methods run first and hand on, by super(), to the user's. Its Config derives from
    `config_class` and has `part`'s own fields beside it; `plain_config` leads back.

    `config_class` itself where it builds a `part` already, `part.Config` where it is TorchTitan's.
    """
    base = built_class(config_class)
    if issubclass(base, part):
        return config_class
    if issubclass(part, base) and config_class is vars(base)["Config"]:
        return part.Config
    known = {field.name for field in fields(config_class)}
    # Two bases with slots of their own cannot be joined: one is the base, the other gives fields.
    added = [(f.name, f.type, copy.copy(f)) for f in fields(part.Config) if f.name not in known]
    config: Any = make_dataclass(
        "Config",
        added,
        bases=(config_class,),
        namespace={"__reduce__": functools.partialmethod(_reduce, part, config_class)},
        kw_only=True,
        slots=True,
    )
    name = f"NITP{base.__name__}"
    config.__module__, config.__qualname__ = base.__module__, f"{name}.Config"
    # Building the class makes its Config build it.
    type(name, (part, base), {"Config": config, "__module__": base.__module__})
    return config


def plain_config(part: Any, config: Any) -> Any:
    """The class of configurations that `config` was extended from."""
    for config_class in type(config).__mro__[1:]:
        if not issubclass(built_class(config_class), part):
            return config_class
    raise AssertionError(f"{type(config).__qualname__} is not {part.__name__}'s")


def _reduce(self: Any, part: Any, config_class: Any) -> tuple[Any, ...]:
    """Pickled by what the class is made of: it has no name that another process could import."""
    values = {field.name: getattr(self, field.name) for field in fields(self)}
    return _rebuild, (part, config_class, values)


def _rebuild(part: Any, config_class: Any, values: dict[str, Any]) -> Any:
    return extended_config(part, config_class)(**values)
