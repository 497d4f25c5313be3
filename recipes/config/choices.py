"""Names from a closed set, checked at the start: left to TorchTitan and PyTorch, a wrong one does
nothing, or ends a run hours later. Free of torch."""

from collections.abc import Sequence
from typing import Any

from recipes.config.lookup import nearest
from recipes.config.values import show_value

_SCHEDULES = ("1F1B", "GPipe", "Interleaved1F1B", "LoopedBFS", "InterleavedZeroBubble",
              "ZBVZeroBubble", "DualPipeV")  # fmt: skip

CHOICES: dict[str, Sequence[str]] = {
    "parallelism.pipeline_parallel_schedule": _SCHEDULES,
    "parallelism.context_parallel_load_balancer": ("headtail", "ptrr"),
    "activation_checkpoint.determinism_check": ("default", "none"),
    "compile.components": ("model", "loss"),
    "checkpoint.exclude_from_loading": (
        "optimizer", "lr_scheduler", "dataloader", "train_state", "random_state"
    ),
}  # fmt: skip
"""Option -> the names that it takes: one, or a list of them. A test compares them with TorchTitan's
and PyTorch's."""

NAME_LISTS = (
    *("compile.components", "checkpoint.exclude_from_loading", "float8.filter_fqns"),
    *("activation_checkpoint.force_recompute_mm_shapes_by_fqns", "override.imports"),
)
"""Options that list names, each once."""


def check_choice(option: str, value: str, choices: Sequence[str]) -> None:
    """Raise ValueError unless the value is one of the choices."""
    if value not in choices:
        hint = nearest(value, choices) or f" Use one of {', '.join(choices)}."
        raise ValueError(f"{option} ({show_value(value)}) does not exist.{hint}")


def check_choices(values: dict[str, dict[str, Any]]) -> None:
    """Raise ValueError naming the first option that has a name which does not exist, or twice."""
    for option, choices in CHOICES.items():
        given = _get(values, option)
        for name in given if isinstance(given, list) else [given]:
            if name is not None:
                check_choice(option, name, choices)
    for option in NAME_LISTS:
        names = _get(values, option) or []
        for name in names:
            if names.count(name) > 1 or name == "":
                fault = "is empty" if name == "" else "is there twice"
                raise ValueError(f"{option}: {show_value(name)} {fault}. Remove it.")
    if values["compile"]["enable"] and not values["compile"]["components"]:
        raise ValueError(
            "compile.components ([]) must have model, loss or both with compile.enable = true. "
            "Name one, or set compile.enable to false."
        )


def _get(values: dict[str, dict[str, Any]], option: str) -> Any:
    table, _, key = option.partition(".")
    return values[table].get(key)  # an option of another mode is absent
