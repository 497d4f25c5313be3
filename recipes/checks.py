"""Checks of settings against each other and against the disk, and the torch-free configs.

Free of torch: what these refuse costs a second, not the start of a job.
"""

import importlib.util
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

from nitp.config import NITPConfig
from recipes.data.config import DataConfig, SourceConfig
from recipes.data.sources import check_sources
from recipes.data.tokenizer import check_tokenizer
from recipes.fields import read_keys, source_path
from recipes.models.shapes import FLAVORS, DecoderShape
from recipes.ranges import check_ranges
from recipes.settings import Settings, SettingsError, nearest

V_SCHEDULES = ("ZBVZeroBubble", "DualPipeV")
_LAUNCHER_NUMBERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_PORT")


def check_environment(environment: Mapping[str, str]) -> None:
    """Raise SettingsError unless the environment has all that torchrun sets, or no RANK."""
    if "RANK" not in environment:
        return
    for name in (*_LAUNCHER_NUMBERS, "MASTER_ADDR"):
        value = environment.get(name, "")
        if not value or (name in _LAUNCHER_NUMBERS and not value.isdecimal()):
            raise SettingsError(
                f"environment variable {name} ({value or 'not set'}) does not go with RANK "
                f"({environment['RANK']}), which is set. Start with torchrun, or unset RANK."
            )
    if not int(environment["RANK"]) < int(environment["WORLD_SIZE"]):
        raise SettingsError(
            f"environment variable RANK ({environment['RANK']}) must be less than WORLD_SIZE "
            f"({environment['WORLD_SIZE']}). Start with torchrun, or unset RANK."
        )


def check_settings(settings: Settings) -> None:
    """Raise SettingsError, naming the file of origin, unless the settings can be a run.

    Covers the model and its flavour, NITP and the data options. What TorchTitan's configs check
    themselves (degrees, dtypes, checkpoint paths) is left to them.
    """
    with _naming_the_origin(settings):
        check_ranges(settings)
        nitp = build_nitp(settings)
        build_data(settings)
        _check_validation(settings)
        _check_nonfinite(settings)
        _check_checkpoint(settings)
        if settings.values["model"]["name"] == "nitp":
            shape = build_shape(settings)
            if nitp.is_active:
                nitp.check_depth(shape.num_layers)
        else:
            _check_torchtitan_model(settings)


def check_files(settings: Settings) -> None:
    """Raise SettingsError unless data sources and tokenizer are on this machine."""
    with _naming_the_origin(settings):
        check_sources(build_data(settings))
        check_tokenizer(settings.values["tokenizer"]["path"])


def check_export(settings: Settings) -> None:
    """Raise SettingsError unless what `[export]` asks for can follow the training."""
    if not settings.values["export"]["enable"]:
        return
    checkpoint = settings.values["checkpoint"]
    with _naming_the_origin(settings):
        for key, value, why in (
            ("enable", True, "a checkpoint is what is exported"),
            ("load_only", False, "a checkpoint is what is exported"),
            ("last_save_in_hf", False, "its last checkpoint could be neither resumed nor exported"),
        ):
            if checkpoint[key] != value:
                raise ValueError(
                    f"export.enable (true) needs checkpoint.{key} = {str(value).lower()}: {why}."
                )
        check_verify(settings.values["export"]["verify"])


def check_verify(verify: str) -> None:
    """Raise ValueError if this verification of an export needs a package that is not installed."""
    if verify == "logits" and importlib.util.find_spec("transformers") is None:
        raise ValueError(
            'export.verify ("logits") needs the package transformers. Install '
            '"nitp-torchtitan[export]", or use "keys".'
        )


@contextmanager
def _naming_the_origin(settings: Settings) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        option = re.match(r"\w+\.\w+", str(error))
        where = settings.origin.get(option[0]) if option else None
        raise SettingsError(f"{where}: {error}" if where else str(error)) from error


def build_nitp(settings: Settings) -> NITPConfig:
    """The `[nitp]` table. Raises ValueError for a value out of range."""
    return NITPConfig(**settings.values["nitp"])


def build_data(settings: Settings) -> DataConfig:
    """The `[data]` table with its `[[data.sources]]`. Raises ValueError, as DataConfig does."""
    values = dict(settings.values["data"])
    sources = [SourceConfig(**source) for source in values.pop("sources")]
    return DataConfig(**values, sources=sources)


def build_shape(settings: Settings) -> DecoderShape:
    """The flavour of this project's decoder with the overrides of `[model]`. Raises ValueError."""
    overrides = dict(settings.values["model"])
    name, flavor = overrides.pop("name"), overrides.pop("flavor")
    assert name == "nitp", f"{name} has no DecoderShape"
    _check_choice("model.flavor", flavor, list(FLAVORS))
    return replace(FLAVORS[flavor], **overrides)


def torchtitan_models() -> list[str]:
    """TorchTitan's models: the packages that have a registry."""
    packages = sorted(source_path("torchtitan.models").parent.glob("*/__init__.py"))
    return [
        package.parent.name
        for package in packages
        if "def model_registry(" in package.read_text(encoding="utf-8")
    ]


def _check_torchtitan_model(settings: Settings) -> None:
    model = settings.values["model"]
    _check_choice("model.name", model["name"], ["nitp", *torchtitan_models()])
    flavors = read_keys(f"torchtitan.models.{model['name']}", "_configs")
    _check_choice("model.flavor", model["flavor"], flavors)
    for key in model.keys() - {"name", "flavor"}:
        raise ValueError(
            f'model.{key} is an override of model.name = "nitp" only. '
            f"{model['name']} has the shape of its flavor."
        )


def _check_validation(settings: Settings) -> None:
    schedule = settings.values["parallelism"]["pipeline_parallel_schedule"]
    is_pipelined = settings.values["parallelism"]["pipeline_parallel_degree"] > 1
    # PyTorch asserts in evaluation where two neighbouring stages share a rank.
    if is_pipelined and schedule in V_SCHEDULES and settings.values["validation"]["enable"]:
        raise ValueError(
            f"validation.enable (true) must be false with parallelism.pipeline_parallel_schedule "
            f'"{schedule}", which PyTorch cannot run forward only. Set it to false or choose '
            "another schedule."
        )


def _check_nonfinite(settings: Settings) -> None:
    policy = settings.values["training"]["on_nonfinite"]
    implementation = settings.values["optimizer"]["implementation"]
    if policy == "skip" and not implementation.startswith("fused"):
        raise ValueError(
            f'training.on_nonfinite ("skip") needs a fused optimizer, not '
            f'optimizer.implementation "{implementation}": only that can skip an update without '
            'asking the host. Set optimizer.implementation = "fused".'
        )


def _check_checkpoint(settings: Settings) -> None:
    checkpoint = settings.values["checkpoint"]
    if checkpoint["last_save_in_hf"]:
        raise ValueError(
            "checkpoint.last_save_in_hf (true) would replace the last checkpoint by one that "
            "cannot be resumed. Set it to false and export.enable = true."
        )
    if checkpoint["create_seed_checkpoint"]:
        raise ValueError(
            "checkpoint.create_seed_checkpoint (true) is not implemented. Set it to false; equal "
            "debug.seed gives equal initial values."
        )
    path = checkpoint["initial_load_path"]
    if path and not checkpoint["initial_load_in_hf"] and not checkpoint["allow_pickle"]:
        raise ValueError(
            f"checkpoint.initial_load_path ({path}) is a DCP checkpoint unless "
            "checkpoint.initial_load_in_hf is true, and those have pickles in them, which run code "
            "of whoever wrote them. Set checkpoint.allow_pickle = true if you trust it."
        )


def _check_choice(option: str, value: str, choices: list[str]) -> None:
    if value not in choices:
        hint = nearest(value, choices) or f" Use one of {', '.join(choices)}."
        raise ValueError(f'{option} ("{value}") does not exist.{hint}')
