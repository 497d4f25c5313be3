"""One training job, from its configuration to its closing lines and its export."""

import logging
import os
import warnings

import torch
from torchtitan.observability import structured_logger as sl
from torchtitan.tools.logging import init_logger, logger

from recipes.data.unigram import unigram_cross_entropy
from recipes.settings import Settings
from recipes.summary import summarize
from recipes.trainer import RunTrainer

__all__ = ["export", "init_logging", "summarize", "train"]


def init_logging() -> None:
    """TorchTitan's log, from rank 0 and the ranks that LOG_RANK names; warnings from all."""
    init_logger()
    # torchdata calls what PyTorch deprecates; nothing a user could do about it.
    warnings.filterwarnings("ignore", message=".*set_vital.*")
    if os.environ["RANK"] not in os.environ.get("LOG_RANK", "0").split(","):
        logger.setLevel(logging.WARNING)


def train(config: RunTrainer.Config) -> None:
    """Train to the end, save, and say where everything lies."""
    sl.init_structured_logger(
        source="training",
        output_dir=config.dump_folder,
        enable=config.debug.enable_structured_logging,
    )
    trainer = config.build()
    try:
        trainer.train()
        if trainer.metrics_processor.last_ntp_loss is not None:
            _log_closing_lines(trainer)
        else:
            logger.warning(
                f"Nothing to train: {config.dump_folder} already holds step {trainer.step} of "
                f"{config.training.steps}. Raise --training.steps or name another "
                "--job.dump_folder."
            )
    finally:
        trainer.close()
    torch.distributed.destroy_process_group()


def export(settings: Settings) -> None:
    """Export the final checkpoint. The training state lies on the disk whatever becomes of it."""
    from recipes.export_run import export_final

    report = export_final(settings)
    for line in str(report or "The final checkpoint is exported already.").splitlines():
        logger.info(line)


def _log_closing_lines(trainer: RunTrainer) -> None:
    """The result against a baseline anyone can check, the files, and what to do next."""
    if torch.distributed.get_rank() != 0:
        return
    config = trainer.config
    folder = config.dump_folder
    metrics = trainer.metrics_processor
    unigram = unigram_cross_entropy(config.dataloader, trainer.tokenizer, config.training.seq_len)
    tensorboard = os.path.join(folder, config.metrics.save_tb_folder)
    num_tokens = trainer.dataloader.num_tokens
    if len(num_tokens) > 1:
        shares = ", ".join(f"{name} {count:,}" for name, count in num_tokens.items())
        logger.info(f"Tokens by source: {shares}")
    logger.info(f"Cross entropy {metrics.last_ntp_loss:.4f}; a unigram model's {unigram:.4f}")
    logger.info(f"Curves: tensorboard --logdir {tensorboard}")
    if config.checkpoint.enable:
        path = os.path.join(folder, config.checkpoint.folder, f"step-{trainer.step}")
        logger.info(f"Checkpoint: {path}")
        logger.info(
            f"To train on: python -m recipes.train --job.config_file {folder}/config.toml "
            f"--training.steps {2 * trainer.step}"
        )
