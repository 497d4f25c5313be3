"""Names that only a built model, or this PyTorch, can tell: left to TorchTitan, a wrong one is
passed over, or ends a started job."""

import importlib
from collections.abc import Sequence
from typing import Any

import torch
from torchtitan.models.common.linear import Linear
from torchtitan.trainer import Trainer

from recipes.config.choices import check_choice
from recipes.config.settings import Settings, nearest


def check_names(settings: Settings, config: Trainer.Config) -> None:
    """Raise ValueError for a name that the model of `config`, or this PyTorch, does not have."""
    option = "activation_checkpoint.force_recompute_mm_shapes_by_fqns"
    if option in settings.origin:  # the default is for experts, and of no effect without
        table, _, key = option.partition(".")
        assert config.model_spec is not None
        check_part_of_names(option, settings.values[table][key], config.model_spec.model)
    for entry in config.override.imports:
        _check_import(entry if isinstance(entry, str) else entry[0])
    if config.compile.enable:
        check_choice("compile.backend", config.compile.backend, torch.compiler.list_backends(()))


def check_part_of_names(option: str, parts: Sequence[str], model: Any) -> None:
    """Raise ValueError unless each of `parts` is part of the name of one of the linear layers of
    `model`."""
    names = list(name_linears(model))
    for part in parts:
        if not any(part in name for name in names):
            modules = {module for name in names for module in name.split(".")}
            hint = nearest(part, sorted({*names, *modules}))
            raise ValueError(
                f'{option} ("{part}") is part of no linear layer\'s name.{hint or " Remove it."}'
            )


def name_linears(model: Any) -> dict[str, Linear.Config]:
    """The linear layers of a model's configuration, by name."""
    return {name: linear for name, linear, _, _ in model.traverse(Linear.Config)}


def _check_import(target: str) -> None:
    module, _, name = target.rpartition(".")
    try:
        names = dir(importlib.import_module(module))
    except (ImportError, ValueError) as error:
        raise ValueError(
            f'override.imports ("{target}") must be module.function, and its module cannot be '
            f"imported: {error}."
        ) from error
    if name not in names:
        raise ValueError(
            f'override.imports ("{target}") names no function of {module}.{nearest(name, names)}'
        )
