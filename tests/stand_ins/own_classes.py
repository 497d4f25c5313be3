"""The `config_registry.py` of someone whose trainer, metrics, validator and checkpoints are their
own.

Each override notes that it was called; `forgetful` and `hasty` go past NITP.
"""

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torchtitan.components.checkpointer import CheckpointManager
from torchtitan.components.loss import CrossEntropyLoss
from torchtitan.components.metrics import MetricsProcessor
from torchtitan.components.validate import Validator
from torchtitan.config import derive
from torchtitan.distributed import utils as dist_utils
from torchtitan.models.common.attention import FlexAttention
from torchtitan.models.llama3.config_registry import llama3_debugmodel
from torchtitan.trainer import Trainer

from nitp import NITPConfig, with_nitp
from recipes.platform import ON_CPU
from recipes.platform.overrides import sdpa_attention

CALLS: Counter = Counter()
NITP = NITPConfig(target_layer=1, weight=0.5)


class MyTrainer(Trainer):
    @dataclass(kw_only=True, slots=True)
    class Config(Trainer.Config):
        nickname: str = "none"

    def __init__(self, config):
        super().__init__(config)
        CALLS[f"trainer {config.nickname}"] += 1

    def train_step(self, data_iterator):
        CALLS["train_step"] += 1
        return super().train_step(data_iterator)

    def forward_backward_step(self, **kwargs):
        CALLS["forward_backward_step"] += 1
        return super().forward_backward_step(**kwargs)

    def post_dataloading_process(self, input_dict, labels):
        """Passes on what it knows."""
        CALLS["post_dataloading_process"] += 1
        known = {name: input_dict[name] for name in ("input", "positions")}
        return super().post_dataloading_process(known, labels)

    def close(self):
        counts = "".join(f"{name}={count}\n" for name, count in sorted(CALLS.items()))
        Path(self.config.dump_folder, "calls.txt").write_text(counts)
        super().close()


class MyMetrics(MetricsProcessor):
    @dataclass(kw_only=True, slots=True)
    class Config(MetricsProcessor.Config):
        channel: str = "#runs"

    def log(self, *args, **kwargs):
        CALLS[f"log {self.config.channel}"] += 1
        super().log(*args, **kwargs)

    def log_validation(self, *args, **kwargs):
        CALLS["log_validation"] += 1
        super().log_validation(*args, **kwargs)


class MyValidator(Validator):
    @dataclass(kw_only=True, slots=True)
    class Config(Validator.Config):
        pass

    def post_dataloading_process(self, input_dict, labels, model_parts):
        CALLS["validation batch"] += 1
        known = {name: input_dict[name] for name in ("input", "positions")}
        return super().post_dataloading_process(known, labels, model_parts)

    def validate(self, model_parts, step):
        CALLS["validate"] += 1
        super().validate(model_parts, step)


class MyCheckpoints(CheckpointManager):
    @dataclass(kw_only=True, slots=True)
    class Config(CheckpointManager.Config):
        pass

    def save(self, curr_step, last_step=False):
        CALLS["save"] += 1
        return super().save(curr_step, last_step)


def mine(trainer=MyTrainer) -> Trainer.Config:
    config = llama3_debugmodel()
    return derive(
        config,
        trainer.Config,
        nickname="bert",
        metrics=derive(config.metrics, MyMetrics.Config, channel="#mine"),
        validator=derive(config.validator, MyValidator.Config),
        checkpoint=derive(config.checkpoint, MyCheckpoints.Config),
    )


def mine_nitp() -> Trainer.Config:
    return with_nitp(mine(), NITP)


def reference() -> Trainer.Config:
    """TorchTitan's own classes with NITP."""
    return with_nitp(llama3_debugmodel(), NITP)


def whole_loss() -> Trainer.Config:
    """Cross entropy that the configuration does not chunk."""
    return with_nitp(replace(llama3_debugmodel(), loss=CrossEntropyLoss.Config()), NITP)


class ForgetfulTrainer(MyTrainer):
    """Calls its model without NITP's pair weights."""

    @dataclass(kw_only=True, slots=True)
    class Config(MyTrainer.Config):
        pass

    def forward_backward_step(self, *, input_dict, labels, global_valid_tokens):
        inputs, labels, model_inputs = self.post_dataloading_process(input_dict, labels)
        known = {name: model_inputs[name] for name in ("positions", "attention_masks")}
        pred = self.model_parts[0](inputs, **known)
        loss, _ = self.loss_fn(pred, labels, global_valid_tokens)
        loss.backward()
        return loss


class HastyTrainer(MyTrainer):
    """Computes a loss of its own."""

    @dataclass(kw_only=True, slots=True)
    class Config(MyTrainer.Config):
        pass

    def train_step(self, data_iterator):
        for _ in range(self.gradient_accumulation_steps):
            next(data_iterator)
        weights = [p for part in self.model_parts for p in part.parameters()]
        torch.stack([p.square().sum() for p in weights]).sum().backward()
        dist_utils.clip_grad_norm_(weights, 1.0)
        self.optimizers.step()


def forgetful() -> Trainer.Config:
    return with_nitp(mine(ForgetfulTrainer), NITP)


def hasty() -> Trainer.Config:
    return with_nitp(mine(HastyTrainer), NITP)


def graph(mode: str | None = None) -> Trainer.Config:
    """TorchTitan's graph trainer, which shards by its own FSDP."""
    from torchtitan.experiments.graph_trainer.configs import (
        GraphTrainerCompileConfig,
        to_graph_trainer_config,
    )
    from torchtitan.experiments.graph_trainer.llama3 import model_registry

    config = to_graph_trainer_config(llama3_debugmodel(), model_registry)
    config.compile = GraphTrainerCompileConfig(enable=mode is not None, mode=mode)
    return with_nitp(config, NITP)


def traced_graph() -> Trainer.Config:
    return graph("aot_fx_trace")


def fault_tolerant() -> Trainer.Config:
    """torchft's trainer alone: its own `__init__` and `train_step`, a loss without chunks."""
    from torchtitan.experiments.torchft.llama3.config_registry import llama3_torchft_debugmodel

    config, plain = llama3_torchft_debugmodel(), llama3_debugmodel()
    config = replace(
        config,
        optimizer=plain.optimizer,
        lr_scheduler=plain.lr_scheduler,
        profiler=plain.profiler,
        fault_tolerance=replace(config.fault_tolerance, enable=False),
    )
    if ON_CPU:  # this trainer applies no overrides
        for _, attention, parent, name in config.model_spec.model.traverse(FlexAttention.Config):
            setattr(parent, name, sdpa_attention(attention))
    return with_nitp(config, NITP)


def no_decoder() -> Trainer.Config:
    """TorchTitan's trainer of Hugging Face modelling code."""
    from torchtitan.experiments.transformers_modeling_backend.config_registry import (
        transformers_modeling_backend_debugmodel,
    )

    return with_nitp(transformers_modeling_backend_debugmodel(), NITP)
