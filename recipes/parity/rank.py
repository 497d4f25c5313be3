"""What one rank of a case trains and notes."""

import pkgutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torchtitan.components.metrics import MetricsProcessor
from torchtitan.trainer import Trainer

from nitp.metrics import NITPMetricsProcessor
from recipes.build import build_config, build_torchtitan_config
from recipes.config import load_settings
from recipes.parity.masking import mask_prompts
from recipes.platform import ON_CPU, on_platform

OVERRIDES = [
    "--metrics.log_freq=1",
    "--metrics.enable_tensorboard=false",
    "--debug.enable_structured_logging=false",
    "--training.max_norm=1e9",  # gradients as they are
]
"""Of every case, before its own."""

Tensors = dict[str, torch.Tensor]


class Recorder:
    """Takes the place of TensorBoard."""

    def __init__(self) -> None:
        self._records: dict[int, dict[str, float]] = {}

    def log(self, metrics: dict[str, Any], step: int) -> None:
        values = {name: float(value) for name, value in metrics.items()}
        self._records.setdefault(step, {}).update(values)

    def take(self, metrics_processor: MetricsProcessor) -> list[dict[str, float]]:
        """The records of the steps since the last call, with what comes late."""
        if isinstance(metrics_processor, NITPMetricsProcessor):
            metrics_processor.log_pending()
        records, self._records = list(self._records.values()), {}
        return records

    def close(self) -> None:
        pass


def run_leg(case: dict[str, Any], leg: int, folder: Path, scratch: Path) -> dict[str, Any] | None:
    """Train one leg of the case; None on ranks whose tensors another rank has written.

    folder: results of earlier cases; scratch: this case's checkpoints and the state at the end of
    the leg before.
    """
    is_last = leg == len(case["legs"]) - 1
    trainer = build_trainer(case, leg, scratch)
    recorder = Recorder()
    trainer.metrics_processor.logger = recorder
    trainer.checkpointer.load()
    result: dict[str, Any] = {
        "initial": gather(parameters(trainer.model_parts)),
        "batches": [],
        "grads": {},
        "num_accumulated": trainer.gradient_accumulation_steps,
        "has_loss": not trainer.parallel_dims.pp_enabled or trainer.pp_has_last_stage,
        "validation": {},
        "probes": [],
    }
    if leg > 0:
        check_equal(gather(training_state(trainer)), torch.load(scratch / "state.pt"))
    elif case["start"] is not None:
        start = torch.load(folder / f"{case['start']}.pt", mmap=True)["initial"]
        set_parameters(trainer.model_parts, start)

    def probe() -> AbstractContextManager[Any]:
        return pkgutil.resolve_name(case["probe"])(trainer) if case["probe"] else nullcontext()

    batches = draw_batches(trainer, result["batches"])
    for _ in range(case["num_steps"] // len(case["legs"])):
        trainer.step += 1
        with probe() as findings:
            trainer.train_step(batches)
        result["probes"].append(findings)
        if not result["grads"]:
            params = parameters(trainer.model_parts)
            # A vision encoder has no part in a step on text.
            result["grads"] = gather({k: p.grad for k, p in params.items() if p.grad is not None})
    result["metrics"] = recorder.take(trainer.metrics_processor)
    keeps_state = case["keeps_state"] or not is_last
    result["state"] = gather(training_state(trainer)) if keeps_state else {}
    if not is_last or case["save"]:
        trainer.checkpointer.save(trainer.step, last_step=True)
    if is_last and case["validate"]:
        with probe() as findings:
            trainer.validator.validate(trainer.model_parts, trainer.step)
        result["probes"].append(findings)
        (result["validation"],) = recorder.take(trainer.metrics_processor)
    trainer.close()
    return result if holds_first_copy(trainer) else None


def build_trainer(case: dict[str, Any], leg: int, scratch: Path) -> Trainer:
    overrides = [f"--job.dump_folder={scratch}", *case["overrides"], *case["legs"][leg][1]]
    # What a cell adds takes the place of, or turns off, what is there before it.
    settings = load_settings(case["config"], OVERRIDES, *([option] for option in overrides))
    config: Any = build_config(settings)
    if case["is_plain"]:
        config = on_platform(build_torchtitan_config(settings))
    if not ON_CPU and config.training.mixed_precision_param == "float32":
        # As on CPU: TorchTitan's experts compute in bfloat16, whatever the run's precision.
        imports = [*config.override.imports, "recipes.platform.overrides.float32_experts"]
        config = replace(config, override=replace(config.override, imports=imports))
    if case["masks_prompts"]:
        config = mask_prompts(config)
    trainer: Trainer = config.build()
    if case["is_plain"] and config.validator.enable:
        # A validation step of a run of ours is a global batch; of TorchTitan's a batch per rank.
        steps = config.validator.steps * trainer.gradient_accumulation_steps
        trainer.validator.config = replace(config.validator, steps=steps)
    return trainer


def draw_batches(trainer: Trainer, noted: list[Tensors]) -> Iterator[Any]:
    """The trainer's batches; those of the first step are copied to `noted`."""
    for inputs, labels in trainer.batch_generator(trainer.dataloader):
        if trainer.step == 1:
            noted.append({**inputs, "labels": labels.clone()})
        yield inputs, labels


def parameters(model_parts: list[nn.Module]) -> dict[str, nn.Parameter]:
    return {
        plain_name(name): param for part in model_parts for name, param in part.named_parameters()
    }


def training_state(trainer: Trainer) -> Tensors:
    """The tensors of model and optimizer in a checkpoint."""
    state = {k: v for part in trainer.model_parts for k, v in part.state_dict().items()}
    state |= trainer.optimizers.state_dict()
    return {plain_name(k): v for k, v in state.items() if isinstance(v, torch.Tensor)}


def plain_name(name: str) -> str:
    """Without what activation checkpointing and compilation wrap around a layer."""
    return name.replace("_checkpoint_wrapped_module.", "").replace("_orig_mod.", "")


def gather(tensors: dict[str, Any]) -> Tensors:
    """Copies of the whole tensors, on CPU. Collective."""
    whole = {k: v.full_tensor() if isinstance(v, DTensor) else v for k, v in tensors.items()}
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in whole.items()}


@torch.no_grad()
def set_parameters(model_parts: list[nn.Module], values: Tensors) -> None:
    """Give every parameter its part of the whole value of that name."""
    for name, param in parameters(model_parts).items():
        value = values[name].to(param.device)
        if isinstance(param, DTensor):
            mesh, placements = param.device_mesh, param.placements
            value = distribute_tensor(value, mesh, placements, src_data_rank=None)
        param.copy_(value)


def check_equal(state: Tensors, saved: Tensors) -> None:
    """Raise ValueError unless `state` holds what was saved, as far as this rank has it."""
    for name, tensor in state.items():
        if not torch.equal(tensor, saved[name]):
            raise ValueError(f"{name} is not what the checkpoint's writer had")


def holds_first_copy(trainer: Trainer) -> bool:
    """Whether this is the first of the ranks that share a pipeline stage (its outermost axis)."""
    num_ranks_per_stage = trainer.parallel_dims.world_size // trainer.parallel_dims.pp
    return torch.distributed.get_rank() % num_ranks_per_stage == 0
