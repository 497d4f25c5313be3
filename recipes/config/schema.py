"""Which typed configs make each TOML table: its options are the fields of those classes.

There is no second schema. Names, types, defaults and docstrings come from the classes' source.
"""

import functools
from dataclasses import MISSING, replace

from recipes.config.fields import Option, read_fields
from recipes.config.options import DEFAULTS

ACTIVATION_CHECKPOINT_CLASSES = {
    "selective": "torchtitan.distributed.activation_checkpoint:SelectiveAC.Config",
    "full": "torchtitan.distributed.activation_checkpoint:FullAC.Config",
    "memory_budget": "torchtitan.distributed.activation_checkpoint:MemoryBudgetAC.Config",
}
SHAPE_CLASS = "recipes.models.shapes:DecoderShape"

TABLES: dict[str, tuple[str, ...]] = {
    "job": ("recipes.config.options:JobOptions",),
    "model": ("recipes.config.options:ModelOptions", SHAPE_CLASS),
    "nitp": ("nitp.config:NITPConfig",),
    "geometry": ("nitp.config:GeometryConfig",),
    "data": ("recipes.data.config:DataConfig",),
    "data.sources": ("recipes.data.config:SourceConfig",),
    "validation": (
        "torchtitan.components.validate:Validator.Config",
        "recipes.config.options:ValidationOptions",
    ),
    "validation.sets": ("recipes.data.config:ValidationSetConfig",),
    "tokenizer": ("recipes.config.options:TokenizerOptions",),
    "training": (
        "torchtitan.config.configs:TrainingConfig",
        "recipes.config.options:TrainingOptions",
    ),
    "optimizer": (
        "recipes.config.options:OptimizerOptions",
        "torchtitan.components.optimizer.optimizer:OptimizersContainer.Config",
    ),
    "lr_scheduler": ("recipes.run.lr_schedule:RunLRSchedulers.Config",),
    "parallelism": ("torchtitan.config.configs:ParallelismConfig",),
    "activation_checkpoint": (
        "recipes.config.options:ActivationCheckpointOptions",
        *ACTIVATION_CHECKPOINT_CLASSES.values(),
    ),
    "compile": ("torchtitan.config.configs:CompileConfig",),
    "float8": (
        "recipes.config.options:Float8Options",
        "torchtitan.components.quantization.float8:Float8LinearConverter.Config",
    ),
    "loss": ("torchtitan.components.loss:ChunkedLossWrapper.Config",),
    "checkpoint": (
        "nitp.checkpoint:NITPCheckpointManager.Config",
        "recipes.config.options:CheckpointOptions",
    ),
    "metrics": ("torchtitan.components.metrics:MetricsProcessor.Config",),
    "export": ("recipes.config.options:ExportOptions",),
    "profiler": ("torchtitan.tools.profiler:Profiler.Config",),
    "comm": ("torchtitan.config.configs:CommConfig",),
    "debug": ("torchtitan.config.configs:DebugConfig",),
    "override": ("torchtitan.config.override:OverrideConfig",),
}
"""Table -> classes, `module:Qualified.Name`. A dotted table is an array of tables."""

LEFT_OUT = {
    "float8.model_compile_enabled",  # follows [compile]; a second switch could disagree with it
    "optimizer.optimizer_factory_kwargs_by_name",  # takes Python objects
}
"""Fields of plain type that are no options."""


Schema = dict[str, dict[str, Option]]


@functools.cache
def load_schema() -> Schema:
    """Table -> key -> option, in the order of `TABLES` and of the classes' fields."""
    schema: Schema = {}
    for table, classes in TABLES.items():
        options: dict[str, Option] = {}
        for source in classes:
            for option in read_fields(source).values():
                key = f"{table}.{option.name}"
                if source == SHAPE_CLASS:
                    # The flavour has the values; the table only overrides them.
                    option = replace(option, default=MISSING, required=False)
                if key in DEFAULTS:
                    option = replace(option, default=DEFAULTS[key])
                if key not in LEFT_OUT:
                    options[option.name] = option
        schema[table] = options
    return schema


def activation_checkpoint_options(mode: str) -> set[str]:
    """Keys that `[activation_checkpoint]` has in this mode, `mode` among them."""
    if mode not in ACTIVATION_CHECKPOINT_CLASSES:
        return {"mode"}
    return {"mode", *read_fields(ACTIVATION_CHECKPOINT_CLASSES[mode])}
