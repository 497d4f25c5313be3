"""One training job, from its configuration to its closing lines."""

import logging
import os
from contextlib import suppress
from pathlib import Path

import torch
from torchtitan.tools.logging import logger

from recipes.run.closing import End, describe_end, describe_files, describe_next, saves
from recipes.run.log import STRUCTURED_LOGGER
from recipes.run.trainer import RunTrainer


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
        if not saves(self.config):
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
        structured = logging.getLogger(STRUCTURED_LOGGER)
        for handler in list(structured.handlers):
            if isinstance(handler, logging.FileHandler):
                structured.removeHandler(handler)  # a closed one would open its file again
                with suppress(OSError):  # of lines that could not be written
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
    ntp_loss = trainer.metrics_processor.last_ntp_loss
    unigram = trainer.dataloader.unigram.cross_entropy()
    if ntp_loss is not None and unigram is not None:
        logger.info(f"Cross entropy {ntp_loss:.4f}; a unigram model's {unigram:.4f}")
    num_tokens = trainer.dataloader.num_tokens
    if len(num_tokens) > 1:
        shares = ", ".join(f"{name} {count:,}" for name, count in num_tokens.items())
        logger.info(f"Tokens by source: {shares}")
    signal_name = trainer.stop_request.signal_name or "a signal to another rank"
    end = End(
        step=trainer.step,
        num_steps_run=trainer.num_steps_run,
        checkpoint=trainer.checkpointer.latest(),
        is_resumable=trainer.checkpointer.is_resumable,
        stopped_by=signal_name if trainer.is_stopping else None,
        is_out_of_data=trainer.is_out_of_data,
    )
    if end.checkpoint is not None and not end.checkpoint.is_dir():
        raise OSError(
            f"{end.checkpoint} was complete and is gone: something else removed it, and with it "
            "what this run has trained."
        )
    for line in describe_files(trainer.config, end):
        logger.info(line)
    why = describe_end(trainer.config, end)
    for line in [*why, describe_next(trainer.config, end)]:
        logger.log(logging.WARNING if why else logging.INFO, line)
