"""One training job, from its configuration to its closing lines."""

import logging
import os
import shutil
import warnings
from pathlib import Path

import torch
from torchtitan.observability import structured_logger as sl
from torchtitan.tools.logging import init_logger, logger

from recipes.run.trainer import RunTrainer


def init_logging() -> None:
    """TorchTitan's log, from rank 0 and the ranks that LOG_RANK names; warnings from all."""
    init_logger()
    # torchdata and TorchTitan call what PyTorch warns of; nothing a user could do about it.
    for message in (".*set_vital.*", "To get the last learning rate computed.*"):
        warnings.filterwarnings("ignore", message=message)
    if os.environ["RANK"] not in os.environ.get("LOG_RANK", "0").split(","):
        logger.setLevel(logging.WARNING)


def run_job(config: RunTrainer.Config, *, is_new: bool) -> bool:
    """Train, save, and say where everything lies; whether the run has come to its end.

    is_new: the run directory did not exist before; a job that fails before its first step leaves
    none behind.
    """
    sl.init_structured_logger(
        source="training",
        output_dir=config.dump_folder,
        enable=config.debug.enable_structured_logging,
    )
    trainer = None
    try:
        trainer = config.build()
        trainer.train()
        if torch.distributed.get_rank() == 0:
            _log_closing_lines(trainer)
    except Exception:
        is_untrained = trainer is None or trainer.num_steps_run == 0
        if is_new and is_untrained:  # on any rank: torchrun ends the others when one has ended
            shutil.rmtree(config.dump_folder, ignore_errors=True)
        raise
    finally:
        if trainer is not None:
            trainer.close()
    torch.distributed.destroy_process_group()
    return trainer.step >= config.training.steps or trainer.is_out_of_data


def _log_closing_lines(trainer: RunTrainer) -> None:
    """How it ended, the result against a baseline anyone can check, the files, what to do next."""
    config, step, last_step = trainer.config, trainer.step, trainer.config.training.steps
    ntp_loss = trainer.metrics_processor.last_ntp_loss
    unigram = trainer.dataloader.unigram.cross_entropy()
    if ntp_loss is not None and unigram is not None:
        logger.info(f"Cross entropy {ntp_loss:.4f}; a unigram model's {unigram:.4f}")
    num_tokens = trainer.dataloader.num_tokens
    if len(num_tokens) > 1:
        shares = ", ".join(f"{name} {count:,}" for name, count in num_tokens.items())
        logger.info(f"Tokens by source: {shares}")
    tensorboard = Path(config.dump_folder, config.metrics.save_tb_folder)
    logger.info(f"Curves: tensorboard --logdir {tensorboard}")
    checkpoint = trainer.checkpointer.latest()
    logger.info(f"Checkpoint: {checkpoint or 'none (checkpoint.enable is false)'}")
    command = f"{_launcher()} -m recipes.train --job.config_file {config.dump_folder}/config.toml"
    if trainer.is_stopping and step < last_step:
        name = trainer.stop_request.signal_name or "a signal to another rank"
        logger.warning(f"Stopped by {name} after step {step} of {last_step}.")
        logger.warning(f"To resume: {command}" if checkpoint else "Nothing was saved.")
    elif trainer.is_out_of_data:
        logger.warning(
            f"Ran out of data after step {step} of {last_step}. To train on, raise "
            f"data.num_epochs: {command} --data.num_epochs N"
        )
    elif trainer.num_steps_run == 0:
        logger.warning(
            f"Nothing to train: {config.dump_folder} already holds step {step} of {last_step}. "
            "Raise --training.steps or name another --job.dump_folder."
        )
    else:
        logger.info(f"To train on: {command} --training.steps {2 * step}")


def _launcher() -> str:
    """The command that starts as many ranks again."""
    num_ranks = int(os.environ["WORLD_SIZE"])
    if num_ranks == 1:
        return "python"
    num_local = int(os.environ["LOCAL_WORLD_SIZE"])
    num_nodes = num_ranks // num_local
    nodes = f"--nnodes={num_nodes} " if num_nodes > 1 else ""
    return f"torchrun {nodes}--nproc_per_node={num_local}"
