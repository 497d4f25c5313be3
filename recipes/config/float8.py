"""The `[float8]` table: linear layers that compute in float8, by TorchTitan's own converter."""

from dataclasses import replace
from typing import Any

from torchtitan.components.quantization import Float8Linear, Float8LinearConverter
from torchtitan.config import derive

from nitp.projector import PROJECTOR_NAME
from nitp.trainer import NITPTrainer
from recipes.config.names import check_part_of_names, name_linears


def convert_linears(config: NITPTrainer.Config, values: dict[str, Any]) -> NITPTrainer.Config:
    """`config` with its model's linear layers in float8, as the `[float8]` table `values` says.

    Changes classes, not parameters: names, shapes and checkpoints stay. To be applied after
    `with_nitp`, so that the projector can be one of the layers, and before the trainer is built:
    conversion drops a layer's sharding, which `update_from_config` sets there.

    Raises ValueError without torchao or without hardware (on CPU float8 is emulated, in eager mode
    only), and where the projector is asked for and cannot be converted.
    """
    if not values["enable"]:
        return config
    if Float8Linear is None:
        raise ValueError(
            "float8.enable (true) needs torchao, which is not installed. Install it: "
            "pip install 'nitp-torchtitan[float8]'."
        )
    assert config.model_spec is not None
    check_part_of_names("float8.filter_fqns", values["filter_fqns"], config.model_spec.model)
    kept = [] if values["projector"] else [PROJECTOR_NAME]
    converter = Float8LinearConverter.Config(
        recipe_name=values["recipe_name"],
        filter_fqns=[*values["filter_fqns"], *kept],
        emulate=values["emulate"],
        model_compile_enabled=config.compile.enable and "model" in config.compile.components,
    ).build()
    model = converter.convert(config.model_spec.model)
    if values["projector"] and config.nitp.is_active:
        _check_projector(model)
    if not any(isinstance(linear, Float8Linear.Config) for linear in name_linears(model).values()):
        raise ValueError(
            f"float8.enable (true) converts no linear layer with float8.filter_fqns "
            f"({values['filter_fqns']}). Shorten that, or set float8.enable to false."
        )
    spec = replace(config.model_spec, model=model)
    return derive(config, NITPTrainer.Config, model_spec=spec)


def _check_projector(model: Any) -> None:
    assert Float8Linear is not None
    linears = {
        name: linear
        for name, linear in name_linears(model).items()
        if name.startswith(PROJECTOR_NAME)
    }
    if not linears:
        raise ValueError(
            "float8.projector (true) has nothing to convert: the run has no projector. "
            "Set it to false."
        )
    for name, linear in linears.items():
        if not isinstance(linear, Float8Linear.Config):
            raise ValueError(
                f"float8.projector (true) cannot convert {name} ({linear.in_features} -> "
                f"{linear.out_features}): both must be multiples of 16, and no entry of "
                "float8.filter_fqns may be part of its name."
            )
