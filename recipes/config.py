"""Settings -> TorchTitan's own typed configuration. The one place where a run is put together."""

import importlib
import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from recipes.checks import build_data, build_nitp, build_shape, check_files, check_settings
from recipes.settings import Settings, resolve_settings

ON_CPU = torch._utils._get_available_device_type() in (None, "cpu")
"""Whether this machine has no accelerator; then the CPU platform takes its place."""

if ON_CPU:
    from recipes import cpu

    cpu.activate()

# Where torchao is installed, torch warns of two needless registrations whenever it is imported.
logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)

from torchtitan.components.loss import ChunkedLossWrapper, CrossEntropyLoss  # noqa: E402
from torchtitan.components.metrics import MetricsProcessor  # noqa: E402
from torchtitan.components.optimizer import (  # noqa: E402
    LRSchedulersContainer,
    OptimizersContainer,
    ParamGroupConfig,
)
from torchtitan.components.tokenizer import HuggingFaceTokenizer  # noqa: E402
from torchtitan.components.validate import Validator  # noqa: E402
from torchtitan.config import (  # noqa: E402
    CommConfig,
    CompileConfig,
    DebugConfig,
    OverrideConfig,
    ParallelismConfig,
    TrainingConfig,
    derive,
)
from torchtitan.distributed import ParallelDims, activation_checkpoint  # noqa: E402
from torchtitan.models.common.decoder import Decoder  # noqa: E402
from torchtitan.models.qwen3 import Qwen3Model  # noqa: E402
from torchtitan.protocols.model_spec import ModelSpec  # noqa: E402
from torchtitan.tools.profiler import Profiler  # noqa: E402
from torchtitan.trainer import Trainer  # noqa: E402

from nitp import with_nitp  # noqa: E402
from nitp.checkpoint import NITPCheckpointManager  # noqa: E402
from nitp.compose import check_composition  # noqa: E402
from nitp.degrees import check_expert_ranks  # noqa: E402
from nitp.export.importing import check_hf_folder  # noqa: E402
from recipes.checkpoint import RunCheckpointManager  # noqa: E402
from recipes.data.config import DataConfig  # noqa: E402
from recipes.data.encoder import Encoder  # noqa: E402
from recipes.data.loader import PackedDataLoader  # noqa: E402
from recipes.data.metrics import DataMetricsProcessor  # noqa: E402
from recipes.data.tokenizer import resolve_tokenizer_path  # noqa: E402
from recipes.float8 import convert_linears  # noqa: E402
from recipes.models.decoder import build_model_spec  # noqa: E402
from recipes.trainer import RunTrainer  # noqa: E402

_ACTIVATION_CHECKPOINT = {
    "selective": activation_checkpoint.SelectiveAC.Config,
    "full": activation_checkpoint.FullAC.Config,
    "memory_budget": activation_checkpoint.MemoryBudgetAC.Config,
}


def load_config(path: str | None, overrides: Sequence[str] = ()) -> RunTrainer.Config:
    """The trainer configuration of a TOML file with `--table.key value` overrides.

    Raises ValueError, one line, for a user's mistake. Without an accelerator the result runs on
    CPU; import this module before anything of torchtitan there.
    """
    return build_config(load_settings(path, overrides))


def load_settings(path: str | None, overrides: Sequence[str] = ()) -> Settings:
    """Resolved and checked settings. Raises ValueError, one line, for a user's mistake."""
    settings = resolve_settings(path, overrides)
    check_settings(settings)
    check_files(settings)
    return settings


def build_config(settings: Settings) -> RunTrainer.Config:
    """The trainer configuration of checked settings. Raises ValueError."""
    plain = build_torchtitan_config(settings)
    config = with_nitp(plain, build_nitp(settings))
    check_composition(config)
    if settings.values["model"]["name"] == "nitp" and plain.checkpoint.initial_load_in_hf:
        _check_initial_load(plain)
    run_config = derive(
        convert_linears(config, settings.values["float8"]),
        RunTrainer.Config,
        metrics=derive(config.metrics, DataMetricsProcessor.Config),
        checkpoint=derive(config.checkpoint, RunCheckpointManager.Config),
        on_nonfinite=settings.values["training"]["on_nonfinite"],
        settings=settings.values,
    )
    return on_platform(run_config)


def on_platform(config: Any) -> Any:
    """The Trainer.Config as this machine can run it."""
    return cpu.adapt(config) if ON_CPU else config


def build_torchtitan_config(settings: Settings) -> Trainer.Config:
    """TorchTitan's own configuration of checked settings, without NITP. Raises ValueError."""
    values = settings.values
    data, spec = build_data(settings), build_model(settings)
    assert isinstance(spec.model, Decoder.Config)
    tokenizer_path = resolve_tokenizer_path(values["tokenizer"]["path"])
    if os.path.isdir(tokenizer_path):  # a dry run may be where the tokenizer is not
        _check_tokenizer(tokenizer_path, data, spec.model.vocab_size)
    training = {key: v for key, v in values["training"].items() if key != "on_nonfinite"}
    try:
        return Trainer.Config(
            model_spec=spec,
            dump_folder=values["job"]["dump_folder"],
            hf_assets_path=tokenizer_path,
            dataloader=PackedDataLoader.Config(data=data, split="train"),
            validator=Validator.Config(
                **values["validation"],
                dataloader=PackedDataLoader.Config(data=data, split="validation"),
            ),
            loss=ChunkedLossWrapper.Config(
                **values["loss"],
                loss_fn=CrossEntropyLoss.Config(global_vocab_size=spec.model.vocab_size),
            ),
            optimizer=_build_optimizer(values["optimizer"]),
            lr_scheduler=LRSchedulersContainer.Config(**values["lr_scheduler"]),
            training=TrainingConfig(**training),
            parallelism=ParallelismConfig(**values["parallelism"]),
            checkpoint=_build_checkpoint(values["checkpoint"]),
            activation_checkpoint=_build_activation_checkpoint(values["activation_checkpoint"]),
            compile=CompileConfig(**values["compile"]),
            metrics=MetricsProcessor.Config(**values["metrics"]),
            profiler=Profiler.Config(**values["profiler"]),
            comm=CommConfig(**values["comm"]),
            debug=DebugConfig(**values["debug"]),
            override=OverrideConfig(**values["override"]),
        )
    except AssertionError as error:  # TorchTitan's way to refuse some values
        raise ValueError(str(error)) from error


def check_ranks(config: RunTrainer.Config, num_ranks: int) -> None:
    """Raise ValueError unless `num_ranks` ranks fit the degrees and can share the global batch.

    TorchTitan asserts the same only after the process group is up, on every rank.
    """
    try:
        dims = ParallelDims.from_config(config.parallelism, num_ranks)
    except AssertionError as error:
        raise ValueError(f"parallelism: {error} ({num_ranks} ranks)") from error
    check_expert_ranks(dims)
    training, dp = config.training, dims.dp_replicate * dims.dp_shard
    # -1 stands for one batch per rank; any number of ranks fits.
    is_free = training.global_batch_size < 0
    if not is_free and training.global_batch_size % (training.local_batch_size * dp):
        raise ValueError(
            f"training.global_batch_size ({training.global_batch_size}) must be a multiple of "
            f"training.local_batch_size ({training.local_batch_size}) times the data-parallel "
            f"degree ({dp}). Change one of them or the number of ranks."
        )


def count_fewest_ranks(parallelism: ParallelismConfig) -> int:
    """The smallest number of ranks that the degrees allow."""
    cp_tp = parallelism.context_parallel_degree * parallelism.tensor_parallel_degree
    dp_shard = parallelism.data_parallel_shard_degree
    if dp_shard == -1:  # as many as there are: enough to hold every expert
        dp_shard = math.lcm(parallelism.expert_parallel_degree, cp_tp) // cp_tp
    replicas = parallelism.data_parallel_replicate_degree * parallelism.pipeline_parallel_degree
    return replicas * dp_shard * cp_tp


def _check_tokenizer(tokenizer_path: str, data: DataConfig, vocab_size: int) -> None:
    try:
        tokenizer = HuggingFaceTokenizer(tokenizer_path=tokenizer_path)
    except Exception as error:  # the tokenizers library raises no other class
        raise ValueError(f"tokenizer.path ({tokenizer_path}) cannot be loaded: {error}") from error
    encoder = Encoder(tokenizer, data.bos)
    if encoder.num_ids > vocab_size:
        raise ValueError(
            f"model.vocab_size ({vocab_size}) must be more than the tokenizer's largest token id "
            f"({encoder.num_ids - 1}). Raise it, or choose another tokenizer.path."
        )


def build_model(settings: Settings) -> ModelSpec:
    """This project's decoder, or one of TorchTitan's models by its registry's flavour."""
    model = settings.values["model"]
    if model["name"] == "nitp":
        return build_model_spec(build_shape(settings), model["flavor"])
    registry: Any = importlib.import_module(f"torchtitan.models.{model['name']}")
    # The CPU platform's attention stands in for FlexAttention, which not all models default to.
    backend = {"attn_backend": "flex"} if ON_CPU else {}
    return registry.model_registry(model["flavor"], **backend)


def _build_optimizer(values: dict[str, Any]) -> OptimizersContainer.Config:
    return OptimizersContainer.Config(
        implementation=values["implementation"],
        param_groups=[
            ParamGroupConfig(
                pattern=".*",
                optimizer_name=values["name"],
                optimizer_kwargs={
                    "lr": values["lr"],
                    "betas": tuple(values["betas"]),
                    "eps": values["eps"],
                    "weight_decay": values["weight_decay"],
                },
            )
        ],
    )


def _build_checkpoint(values: dict[str, Any]) -> NITPCheckpointManager.Config:
    values = {key: value for key, value in values.items() if key != "allow_pickle"}
    if values["initial_load_path"] is None:
        if values["initial_load_in_hf"]:
            raise ValueError(
                "checkpoint.initial_load_in_hf (true) needs checkpoint.initial_load_path: the "
                "folder of the Hugging Face weights."
            )
        values["initial_load_model_only"] = False  # without a path it has no effect, and warns
    elif "://" not in values["initial_load_path"]:
        values["initial_load_path"] = os.path.abspath(values["initial_load_path"])
    return NITPCheckpointManager.Config(**values)


def _check_initial_load(config: Trainer.Config) -> None:
    """Raise ValueError unless the model can start from the Hugging Face folder."""
    assert config.model_spec is not None and isinstance(
        config.checkpoint, NITPCheckpointManager.Config
    )
    model, path = config.model_spec.model, config.checkpoint.initial_load_path
    assert isinstance(model, Qwen3Model.Config) and path is not None
    try:
        check_hf_folder(Path(path), model)
    except ValueError as error:
        raise ValueError(f"checkpoint.initial_load_path: {error}") from error
    is_moe = any(layer.moe is not None for layer in model.layers)
    if is_moe and config.parallelism.data_parallel_replicate_degree > 1:
        raise ValueError(
            "checkpoint.initial_load_in_hf (true) with experts needs "
            "parallelism.data_parallel_replicate_degree = 1: TorchTitan's adapter cannot split "
            "replicated experts. Save a checkpoint without replication and start from that."
        )


def _build_activation_checkpoint(values: dict[str, Any]) -> Any:
    fields = {key: value for key, value in values.items() if key != "mode"}
    mode = values["mode"]
    return None if mode == "none" else _ACTIVATION_CHECKPOINT[mode](**fields)
