"""One training job, from its configuration to its closing lines."""

import logging
import os
import warnings
from contextlib import suppress
from pathlib import Path

import torch
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


class Job:
    """A training job of this process, and what it leaves behind if it fails at its start."""

    def __init__(self, config: RunTrainer.Config) -> None:
        self.config = config
        self._trainer: RunTrainer | None = None
        # Looked at before the ranks meet, by the one that owns the directory: no other rank has
        # written there.
        paths = _log_paths(config) if os.environ["RANK"] == "0" else []
        self._new_paths = [path for path in paths if not path.exists()]

    def run(self) -> bool:
        """Train, save, and say where everything lies; whether the run has come to its end, and
        nobody has asked it to stop."""
        if not _saves(self.config):
            logger.warning(
                "This run saves nothing: checkpoint.enable is false or load_only is true."
            )
        self._trainer = trainer = self.config.build()
        with trainer.stop_request:  # to its end: the curves are closed last
            try:
                trainer.train()
                if torch.distributed.get_rank() == 0:
                    _log_closing_lines(trainer)
            finally:
                trainer.close()
        torch.distributed.destroy_process_group()
        is_over = trainer.step >= self.config.training.steps or trainer.is_out_of_data
        is_stopped = trainer.is_stopping or trainer.stop_request.signal_name is not None
        if is_over and is_stopped and self.config.settings.values["export"]["enable"]:
            logger.warning("The export is left out: asked to stop. The same command makes it.")
        return is_over and not is_stopped

    def remove_own_log(self) -> bool:
        """Remove the structured log of this process, unless a step is done; whether none is."""
        if self._has_stepped():
            return False
        structured = logging.getLogger("torchtitan.structured_logger")
        for handler in list(structured.handlers):
            if isinstance(handler, logging.FileHandler):
                structured.removeHandler(handler)  # a closed one would open its file again
                handler.close()
                Path(handler.baseFilename).unlink(missing_ok=True)
        return True

    def remove_shared_logs(self) -> None:
        """Remove, unless a step is done, the file and the empty folders that were not there when
        the job began. On rank 0, when the other ranks have removed their own."""
        for path in [] if self._has_stepped() else self._new_paths:
            with suppress(OSError):  # not there, or not empty
                path.rmdir() if path.is_dir() else path.unlink()

    def _has_stepped(self) -> bool:
        return self._trainer is not None and self._trainer.num_steps_run > 0


def _log_paths(config: RunTrainer.Config) -> list[Path]:
    """What TorchTitan writes while it builds the trainer: two folders and a file."""
    names = ["structured_logs", config.comm.save_traces_folder]
    if config.debug.save_config_file is not None:
        names.append(config.debug.save_config_file)
    return [Path(config.dump_folder, name) for name in names]


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
    logger.info(f"Checkpoint: {checkpoint or 'none'}")
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
    elif checkpoint is not None:
        logger.info(_describe_next(config, command, step))


def _saves(config: RunTrainer.Config) -> bool:
    return config.checkpoint.enable and not config.checkpoint.load_only


def _describe_next(config: RunTrainer.Config, command: str, step: int) -> str:
    """How to train on after the last step."""
    end = config.lr_scheduler.total_steps
    if end is None or step < end:
        return f"To train on: {command} --training.steps {min(2 * step, end or 2 * step)}"
    return (
        f"The learning rate's schedule ends here (lr_scheduler.total_steps = {end}). A run in "
        "another job.dump_folder can start from this checkpoint: checkpoint.initial_load_path."
    )


def _launcher() -> str:
    """The command that starts as many ranks again."""
    num_ranks = int(os.environ["WORLD_SIZE"])
    if num_ranks == 1:
        return "python"
    num_local = int(os.environ["LOCAL_WORLD_SIZE"])
    num_nodes = num_ranks // num_local
    nodes = f"--nnodes={num_nodes} " if num_nodes > 1 else ""
    return f"torchrun {nodes}--nproc_per_node={num_local}"
