"""What settings must be: in range, in agreement with each other, and present on this machine.

Free of torch: what these refuse costs a second, not the start of a job.
"""

import importlib.util
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from recipes.config.choices import check_choice, check_choices
from recipes.config.fields import read_keys
from recipes.config.initial import check_initial_load
from recipes.config.parts import (
    build_data,
    build_geometry,
    build_nitp,
    build_shape,
    build_validation_sets,
    torchtitan_models,
)
from recipes.config.paths import check_run_paths
from recipes.config.ranges import check_ranges
from recipes.config.settings import Settings, SettingsError
from recipes.data.sources import check_sources
from recipes.data.tokenizer import check_tokenizer

V_SCHEDULES = ("ZBVZeroBubble", "DualPipeV")


def check_settings(settings: Settings) -> None:
    """Raise SettingsError, naming the file of origin, unless the settings can be a run.

    Covers the model and its flavour, NITP and the data options. What TorchTitan's configs check
    themselves (degrees, dtypes, checkpoint paths) is left to them.
    """
    with _naming_the_origin(settings):
        check_ranges(settings.values)
        check_choices(settings.values)
        nitp = build_nitp(settings)
        build_geometry(settings)
        if nitp.is_active:
            nitp.check_steps(settings.values["training"]["steps"])
        build_data(settings)
        build_validation_sets(settings)
        _check_validation(settings)
        _check_nonfinite(settings)
        _check_schedule(settings)
        _check_reports(settings)
        _check_checkpoint(settings)
        check_run_paths(settings.values)
        if settings.values["model"]["name"] == "nitp":
            shape = build_shape(settings)
            if nitp.is_active:
                nitp.check_depth(shape.num_layers)
        else:
            _check_torchtitan_model(settings)


def check_files(settings: Settings) -> None:
    """Raise SettingsError unless data sources, tokenizer and initial weights are here."""
    with _naming_the_origin(settings):
        check_sources(build_data(settings), build_validation_sets(settings))
        check_tokenizer(settings.values["tokenizer"]["path"])
        check_initial_load(settings.values, must_exist=True)
        _check_schedule_file(settings)


def check_weights(settings: Settings) -> None:
    """Raise SettingsError if what a run starts from is on this machine, and something else."""
    with _naming_the_origin(settings):
        check_initial_load(settings.values, must_exist=False)


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


def _check_torchtitan_model(settings: Settings) -> None:
    model = settings.values["model"]
    check_choice("model.name", model["name"], ["nitp", *torchtitan_models()])
    flavors = read_keys(f"torchtitan.models.{model['name']}", "_configs")
    check_choice("model.flavor", model["flavor"], flavors)
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
    validation, data = settings.values["validation"], settings.values["data"]
    if validation["enable"] and not validation["sets"] and data["validation_fraction"] == 0:
        raise ValueError(
            "validation.enable (true) needs documents that are held out. Set "
            "data.validation_fraction, or add a [[validation.sets]] table."
        )


def _check_schedule_file(settings: Settings) -> None:
    parallelism = settings.values["parallelism"]
    path = parallelism["pipeline_parallel_schedule_csv"]
    if path and not os.path.isfile(path):
        raise ValueError(
            f"parallelism.pipeline_parallel_schedule_csv ({path}) is no file. Name another, or "
            "leave it out."
        )


def _check_schedule(settings: Settings) -> None:
    steps = settings.values["training"]["steps"]
    total = settings.values["lr_scheduler"]["total_steps"]
    if total is not None and steps > total:
        raise ValueError(
            f"training.steps ({steps}) must be at most lr_scheduler.total_steps ({total}): beyond "
            "its end the schedule has no learning rate. Raise lr_scheduler.total_steps, or leave "
            "it out."
        )
    lowest = settings.values["lr_scheduler"]["min_lr_factor"]
    if settings.values["lr_scheduler"]["decay_type"] == "exponential" and lowest == 0.0:
        raise ValueError(
            "lr_scheduler.min_lr_factor (0.0) must be greater than 0 with lr_scheduler.decay_type "
            '"exponential", which falls by equal factors and never reaches 0. Set 0.1, or choose '
            "another decay."
        )


def _check_reports(settings: Settings) -> None:
    """TorchTitan asserts the one, and goes on without the other."""
    profiler = settings.values["profiler"]
    freq, warmup, active = (
        profiler[key] for key in ("profile_freq", "profiler_warmup", "profiler_active")
    )
    if profiler["enable_profiling"] and freq < warmup + active:
        raise ValueError(
            f"profiler.profile_freq ({freq}) must be at least profiler.profiler_warmup ({warmup}) "
            f"and profiler.profiler_active ({active}) together. Raise it, or lower these."
        )
    if settings.values["metrics"]["enable_wandb"] and importlib.util.find_spec("wandb") is None:
        raise ValueError(
            "metrics.enable_wandb (true) needs the package wandb. Install it, or set "
            "metrics.enable_wandb to false."
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
