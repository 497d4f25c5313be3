"""What settings must be: in range, in agreement with each other, and present on this machine.

Free of torch: what these refuse costs a second, not the start of a job.
"""

import importlib.util
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from recipes.config.fields import read_keys
from recipes.config.parts import (
    build_data,
    build_nitp,
    build_shape,
    check_choice,
    torchtitan_models,
)
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
        _check_ranges(settings)
        nitp = build_nitp(settings)
        if nitp.is_active:
            nitp.check_steps(settings.values["training"]["steps"])
        build_data(settings)
        _check_validation(settings)
        _check_nonfinite(settings)
        _check_schedule(settings)
        _check_checkpoint(settings)
        _check_folders(settings)
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


def _check_folders(settings: Settings) -> None:
    """A job owns its run directory, and no other folder."""
    for option in ("checkpoint.folder", "metrics.save_tb_folder", "export.folder"):
        table, _, key = option.partition(".")
        path = Path(settings.values[table][key])
        if path.is_absolute() or os.pardir in path.parts:
            raise ValueError(
                f"{option} ({path}) must be inside job.dump_folder, which belongs to one job at a "
                "time. Give a relative path, or move job.dump_folder."
            )


# ------------------------------------------------------------------------ ranges
# Left to TorchTitan, these numbers divide by zero, or train nothing or nonsense without a word.


class Range(NamedTuple):
    """What the values of an option have in common."""

    words: str
    """Complete "must be ..."."""

    holds: Callable[[Any], bool]


AT_LEAST_1 = Range("at least 1", lambda n: n >= 1)
AT_LEAST_0 = Range("at least 0", lambda n: n >= 0)
POSITIVE = Range("greater than 0", lambda n: n > 0)
SHARE = Range("from 0 to 1", lambda n: 0 <= n <= 1)
COUNT_OR_FREE = Range("at least 1, or -1", lambda n: n >= 1 or n == -1)

RANGES: dict[str, Range] = {
    "training.steps": AT_LEAST_1,
    "training.seq_len": AT_LEAST_1,
    "training.local_batch_size": AT_LEAST_1,
    "training.global_batch_size": COUNT_OR_FREE,
    "training.max_norm": POSITIVE,
    "training.gc_freq": AT_LEAST_1,
    "optimizer.lr": POSITIVE,
    "optimizer.betas": Range(
        "at least 0 and less than 1, each", lambda b: 0 <= min(b) <= max(b) < 1
    ),
    "optimizer.eps": AT_LEAST_0,
    "optimizer.weight_decay": AT_LEAST_0,
    "lr_scheduler.warmup_steps": AT_LEAST_0,
    "lr_scheduler.total_steps": AT_LEAST_1,
    "lr_scheduler.decay_ratio": SHARE,
    "lr_scheduler.min_lr_factor": SHARE,
    "loss.num_chunks": AT_LEAST_1,
    "metrics.log_freq": AT_LEAST_1,
    "validation.freq": AT_LEAST_1,
    "validation.steps": COUNT_OR_FREE,
    "checkpoint.interval": AT_LEAST_1,
    "checkpoint.keep_latest_k": Range("0 (all) or at least 2", lambda n: n == 0 or n >= 2),
    "checkpoint.load_step": Range("at least 0, or -1 (the latest)", lambda n: n >= -1),
    "comm.init_timeout_seconds": AT_LEAST_1,
    "comm.train_timeout_seconds": AT_LEAST_1,
    "profiler.profile_freq": AT_LEAST_1,
    "debug.seed": AT_LEAST_0,
}
"""Option -> range. None (not set) is always in range."""


def _check_ranges(settings: Settings) -> None:
    """Raise ValueError naming the first option whose value is out of range."""
    for option, given in RANGES.items():
        table, _, key = option.partition(".")
        value = settings.values[table][key]
        if value is not None and not given.holds(value):
            raise ValueError(f"{option} ({value}) must be {given.words}.")
