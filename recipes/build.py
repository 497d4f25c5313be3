"""Settings -> TorchTitan's own typed configuration. The one place where a run is put together."""

import importlib
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from recipes.platform import ON_CPU, on_platform  # first: torchtitan resolves its device once

# isort: split

from torchtitan.components.loss import ChunkedLossWrapper, CrossEntropyLoss
from torchtitan.components.metrics import MetricsProcessor
from torchtitan.components.optimizer import OptimizersContainer, ParamGroupConfig
from torchtitan.components.tokenizer import HuggingFaceTokenizer
from torchtitan.components.validate import Validator
from torchtitan.config import (
    CommConfig,
    CompileConfig,
    DebugConfig,
    OverrideConfig,
    ParallelismConfig,
    TrainingConfig,
    derive,
)
from torchtitan.distributed import activation_checkpoint
from torchtitan.models.common.decoder import Decoder
from torchtitan.models.qwen3 import Qwen3Model
from torchtitan.protocols.model_spec import ModelSpec
from torchtitan.tools.profiler import Profiler
from torchtitan.trainer import Trainer

from nitp import with_nitp
from nitp.checkpoint import NITPCheckpointManager
from nitp.compose import check_composition
from recipes.config.degrees import check_degrees
from recipes.config.float8 import convert_linears
from recipes.config.names import check_names
from recipes.config.parts import (
    build_data,
    build_geometry,
    build_nitp,
    build_shape,
    build_validation_sets,
)
from recipes.config.settings import Settings
from recipes.data.config import DataConfig
from recipes.data.encoder import Encoder
from recipes.data.loader import PackedDataLoader
from recipes.data.tokenizer import resolve_tokenizer_path
from recipes.models.decoder import build_model_spec
from recipes.models.hf.reading import check_hf_folder
from recipes.models.hf.weights import as_transformers_reads, read_weights
from recipes.run.checkpoint import RunCheckpointManager
from recipes.run.lr_schedule import RunLRSchedulers
from recipes.run.metrics import RunMetricsProcessor
from recipes.run.origin import read_origin
from recipes.run.trainer import RunTrainer
from recipes.run.validate import RunValidator

_ACTIVATION_CHECKPOINT = {
    "selective": activation_checkpoint.SelectiveAC.Config,
    "full": activation_checkpoint.FullAC.Config,
    "memory_budget": activation_checkpoint.MemoryBudgetAC.Config,
}
_NORMS_AND_EMBEDDINGS = r"norm\d*\.(weight|bias)$|^tok_embeddings\."
"""Names of parameters, in TorchTitan's models too. One pattern, as each must match a parameter of
every pipeline stage: all that have a layer have norms."""


def build_config(settings: Settings) -> RunTrainer.Config:
    """The trainer configuration of checked settings. Raises ValueError."""
    plain = build_torchtitan_config(settings)
    config = with_nitp(plain, build_nitp(settings))
    check_degrees(config)
    check_names(settings, plain)
    if plain.checkpoint.initial_load_in_hf and not _has_checkpoint(plain):
        _check_initial_load(plain)
    run_config = derive(
        convert_linears(config, settings.values["float8"]),
        RunTrainer.Config,
        metrics=derive(config.metrics, RunMetricsProcessor.Config),
        checkpoint=derive(config.checkpoint, RunCheckpointManager.Config),
        validator=derive(
            config.validator,
            RunValidator.Config,
            global_batch_size=config.training.global_batch_size,
            sets=build_validation_sets(settings),
        ),
        geometry=build_geometry(settings),
        on_nonfinite=settings.values["training"]["on_nonfinite"],
        settings=settings,
    )
    run_config = RunTrainer.fit(run_config)
    check_composition(run_config, run_config.nitp, run_config.geometry)
    return on_platform(run_config)


def build_torchtitan_config(settings: Settings) -> Trainer.Config:
    """TorchTitan's own configuration of checked settings, without NITP. Raises ValueError."""
    values = settings.values
    data, spec = build_data(settings), build_model(settings)
    assert isinstance(spec.model, Decoder.Config)
    tokenizer_path = resolve_tokenizer_path(values["tokenizer"]["path"])
    if os.path.isdir(tokenizer_path):  # a dry run may be where the tokenizer is not
        _check_tokenizer(tokenizer_path, data, spec.model.vocab_size)
    training = {key: v for key, v in values["training"].items() if key != "on_nonfinite"}
    validation = {key: v for key, v in values["validation"].items() if key != "sets"}
    try:
        return Trainer.Config(
            model_spec=spec,
            dump_folder=values["job"]["dump_folder"],
            hf_assets_path=tokenizer_path,
            dataloader=PackedDataLoader.Config(data=data, split="train"),
            validator=Validator.Config(
                **validation,
                dataloader=PackedDataLoader.Config(data=data, split="validation"),
            ),
            loss=ChunkedLossWrapper.Config(
                **values["loss"],
                loss_fn=CrossEntropyLoss.Config(global_vocab_size=spec.model.vocab_size),
            ),
            optimizer=_build_optimizer(values["optimizer"]),
            lr_scheduler=RunLRSchedulers.Config(**values["lr_scheduler"]),
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
        spec = build_model_spec(build_shape(settings), model["flavor"])
    else:
        registry: Any = importlib.import_module(f"torchtitan.models.{model['name']}")
        # The CPU platform's attention stands in for FlexAttention, which not all models default to.
        backend = {"attn_backend": "flex"} if ON_CPU else {}
        spec = registry.model_registry(model["flavor"], **backend)
    if spec.state_dict_adapter is None:
        return spec
    return replace(spec, state_dict_adapter=as_transformers_reads(spec.state_dict_adapter))


def _build_optimizer(values: dict[str, Any]) -> OptimizersContainer.Config:
    # By pattern; the first that matches a parameter has it.
    decay = {".*": values["weight_decay"]}
    if not values["decay_norms_and_embeddings"]:
        decay = {_NORMS_AND_EMBEDDINGS: 0.0, **decay}
    return OptimizersContainer.Config(
        implementation=values["implementation"],
        param_groups=[
            ParamGroupConfig(
                pattern=pattern,
                optimizer_name=values["name"],
                optimizer_kwargs={
                    "lr": values["lr"],
                    "betas": tuple(values["betas"]),
                    "eps": values["eps"],
                    "weight_decay": weight_decay,
                },
            )
            for pattern, weight_decay in decay.items()
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


def _has_checkpoint(config: Trainer.Config) -> bool:
    """Whether the run goes on from one of its own: what it began from may be gone by then."""
    folder = Path(config.dump_folder, config.checkpoint.folder)
    return any(folder.glob("step-*/.metadata"))


def _check_initial_load(config: Trainer.Config) -> None:
    """Raise ValueError unless the model can start from the Hugging Face folder."""
    spec, checkpoint = config.model_spec, config.checkpoint
    assert spec is not None and isinstance(checkpoint, NITPCheckpointManager.Config)
    model, path = spec.model, checkpoint.initial_load_path
    assert path is not None
    try:
        if isinstance(model, Qwen3Model.Config) and spec.name == "nitp":
            check_hf_folder(Path(path), model)
        else:
            read_weights(Path(path))
        read_origin(Path(path), is_hf=True)  # what an export will need of it
    except (ValueError, OSError) as error:
        raise ValueError(f"checkpoint.initial_load_path: {error}") from error
    assert isinstance(model, Decoder.Config)
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
