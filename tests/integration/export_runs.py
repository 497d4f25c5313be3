"""Run directories for the export tests, saved as training saves them but without training."""

from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp

from recipes.config import load_config
from recipes.config.settings import resolve_settings, save_settings
from tests.launch import compose

DENSE, MOE = "train_configs/debug.toml", "train_configs/debug_moe.toml"
SMALL = [
    "--model.num_layers=3", "--model.dim=64", "--model.num_heads=4", "--model.num_kv_heads=2",
    "--model.head_dim=16", "--model.ffn_dim=96", "--nitp.target_layer=1", "--training.seq_len=64",
]  # fmt: skip
SMALL_MOE = [*SMALL, "--model.expert_dim=48"]
STEP = 3


def build_state(config: str, overrides: list[str]) -> dict[str, object]:
    """What a checkpoint holds: the model with its projector, and the training state beside it.

    Weights are larger than at the start of training, so that a fault shows in the logits, and the
    router has a selection bias.
    """
    torch.manual_seed(0)
    trainer_config = load_config(config, compose(overrides))
    model = trainer_config.model_spec.model.build()
    with torch.no_grad():
        model.init_states()
        for name, value in model.state_dict().items():
            if name.endswith("expert_bias_E"):
                value.uniform_(-0.1, 0.1)
        for name, param in model.named_parameters():
            if name.endswith("norm.weight"):
                param.uniform_(0.5, 1.5)
            elif name not in ("tok_embeddings.weight", "lm_head.weight"):
                param.mul_(5.0)
    moment = torch.zeros(4)
    return {
        **model.state_dict(),
        "optimizer": {"state.norm.weight.exp_avg": moment, "param_groups.norm.weight.lr": 1e-3},
        "lr_scheduler": {"last_epoch": STEP},
        "dataloader": {"rows": torch.tensor([6])},
        "train_state": {"step": STEP, "ntokens_seen": 0},
    }


def save_run(folder: Path, config: str, overrides: list[str]) -> dict[str, object]:
    """Write a run directory; returns the checkpoint's state."""
    save_settings(resolve_settings(config, compose(overrides)), folder / "config.toml")
    state = build_state(config, overrides)
    save_checkpoint(folder, state)
    return state


def save_checkpoint(folder: Path, state: dict[str, object], step: int = STEP) -> Path:
    checkpoint = folder / "checkpoint" / f"step-{step}"
    dcp.save(dict(state), checkpoint_id=checkpoint, no_dist=True)
    return checkpoint
