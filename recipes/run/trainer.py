"""The trainer of a run: ends, resumes and fails without surprise.

TorchTitan's loop stays as it is; this overrides the points that it calls.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torchtitan.components.dataloader import DataloaderExhaustedError
from torchtitan.config import derive
from torchtitan.distributed import ParallelDims
from torchtitan.observability import structured_logger as sl
from torchtitan.tools.logging import logger

from nitp.measured import MeasuredLoss
from nitp.trainer import Batch, NITPTrainer
from recipes.config.degrees import check_degrees, check_expert_ranks
from recipes.config.options import OnNonfinite
from recipes.config.settings import Settings
from recipes.data.loader import PackedDataLoader
from recipes.run.agreement import check_ranks_agree
from recipes.run.checkpoint import RunCheckpointManager
from recipes.run.folder import save_config
from recipes.run.health import StepData, StepHealth, Verdict
from recipes.run.inputs import save_run_inputs
from recipes.run.lock import check_owner
from recipes.run.metrics import RunMetricsProcessor
from recipes.run.origin import save_origin
from recipes.run.peers import wait_for_rank_0
from recipes.run.stopping import StopAgreement
from recipes.stop import StopRequest

_MAX_SKIPPED_IN_A_ROW = 10
_NUM_NAMED = 20
"""Documents that a message names at most."""


class _UpdateSkippedError(Exception):
    """Leaves a step of TorchTitan's after its backward passes, on all ranks."""


class RunTrainer(NITPTrainer):
    """NITPTrainer that saves wherever it ends and judges the numbers of every step.

    * A stop request (`recipes.stop`) on any rank ends all ranks after the same step, saved.
    * Data that run out end the run at the last whole global batch, saved.
    * A loss or gradient that is not finite stops the run, or only skips its update.
    * Step, tokens and data position resume on any number of ranks.

    Raises ValueError for degrees that do not fit the model, FloatingPointError for numbers that are
    not finite.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(NITPTrainer.Config):
        on_nonfinite: OnNonfinite = "stop"
        """training.on_nonfinite."""

        settings: Settings
        """The resolved options: compared across ranks at start-up, saved when the first step
        begins."""

    config: Config
    checkpointer: RunCheckpointManager
    dataloader: PackedDataLoader
    metrics_processor: RunMetricsProcessor

    def __init__(self, config: Config) -> None:
        check_degrees(config)
        super().__init__(config)
        self.metrics_processor.attach_progress(
            loader=self.dataloader,
            total_steps=config.training.steps,
            has_loss=not self.parallel_dims.pp_enabled or self.pp_has_last_stage,
        )
        self.stop_request = StopRequest()
        self.is_stopping = False
        """Whether the ranks have agreed to stop."""
        self._stop = StopAgreement(self.device, lambda: self.stop_request.signal_name is not None)
        if config.validator.enable:
            self.validator.attach_stop(self._stop)
        self.is_out_of_data = False
        self.num_steps_run = 0
        """By this process."""
        self.num_skipped_steps = 0
        """Whose update was skipped, since step 1 of the run."""
        self._num_skipped_in_a_row = 0
        self._num_backward_passes = 0
        self._first_row = 0
        self._health = StepHealth(self.device)

    @classmethod
    def fit(cls, config: Any) -> Any:
        """The baseline is measured too; its losses, gradients and weights stay, bit for bit."""
        config = super().fit(config)
        if config.geometry.enable and not config.nitp.is_active:
            return replace(config, loss=derive(config.loss, MeasuredLoss.Config))
        return config

    def init_distributed(self) -> ParallelDims:
        is_alone = self.config.comm.mode != "default"
        try:
            if not is_alone:
                wait_for_rank_0(self.config.comm.init_timeout_seconds)
            # No rank writes before: now rank 0 owns the directory.
            dims = super().init_distributed()
        except (dist.DistStoreError, dist.DistNetworkError) as error:
            raise OSError(
                f"the {os.environ['WORLD_SIZE']} ranks did not meet at MASTER_ADDR "
                f"({os.environ['MASTER_ADDR']}), MASTER_PORT ({os.environ['MASTER_PORT']}) within "
                f"comm.init_timeout_seconds ({self.config.comm.init_timeout_seconds}): {error}. "
                "Start all of them, or raise it."
            ) from error
        check_expert_ranks(dims)
        sl.init_structured_logger(
            source="training",
            output_dir=self.config.dump_folder,
            enable=self.config.debug.enable_structured_logging,
        )
        if not is_alone:
            config = self.config
            check_ranks_agree(
                config.settings.values,
                config.dataloader.data,
                config.validator.sets,
                tokenizer=config.hf_assets_path,
            )
        return dims

    # ------------------------------------------------------------------------ the loop

    def train(self) -> None:
        with self.stop_request:
            super().train()
            self.checkpointer.maybe_wait_for_saving()

    def should_continue_training(self) -> bool:
        if not self.num_steps_run:  # the checkpoint has just been loaded, which takes its time
            self._stop.ask()
            self._stop.read()
        if self._stop.is_reached and not self.is_stopping:
            self.is_stopping = self.checkpointer.saves_any_step = True
            if self.num_steps_run:  # it was agreed in a validation, after the step's turn to save
                self.checkpointer.save(self.step)
                self.metrics_processor.flush()
        return super().should_continue_training() and not self.is_stopping

    def train_step(self, data_iterator: Iterator[Batch]) -> None:
        self._first_row, self._num_backward_passes = self.dataloader.num_rows, 0
        # A tensor for each stream: not at every step of data without end.
        start = self.dataloader.state_dict() if self.dataloader.has_end else None
        try:
            super().train_step(data_iterator)
        except DataloaderExhaustedError:
            assert start is not None
            self._save_without_step(start)
            raise
        except _UpdateSkippedError:
            # Skips, by `found_inf`; the learning rate moves on as at any other step.
            self.checkpointer.maybe_wait_for_staging()
            self.optimizers.step()
            self.lr_schedulers.step()
        self.num_steps_run += 1
        if self.num_steps_run == 1:
            self._save_config()
        will_save = self.checkpointer.will_save(self.step, self.step == self.config.training.steps)
        if will_save or self._will_validate():
            self._judge(self._health.read())
        if will_save or self.is_stopping:
            # The curves of a run that is killed later must reach as far as its checkpoint.
            self.metrics_processor.flush()

    def _save_config(self) -> None:
        """Not before a step is done: a run that cannot start leaves its directory as it was."""
        if dist.get_rank() == 0:
            check_owner(self.config.dump_folder)
            save_run_inputs(self.config.settings)
            save_config(self.config.settings)
            if self.checkpointer.origin is not None:
                origin = replace(self.checkpointer.origin, first_step=self.step)
                save_origin(origin, Path(self.config.dump_folder))

    def forward_backward_step(self, **kwargs: Any) -> torch.Tensor:
        loss = super().forward_backward_step(**kwargs)
        self._health.add(loss)
        self._num_backward_passes += 1
        if self._num_backward_passes == self.gradient_accumulation_steps:
            self._check_step()
        return loss

    def _check_step(self) -> None:
        """The gradients are complete: learn of the step before, and start to agree on this one.

        At a step that is logged, where the host waits for the device anyway, learn of this one,
        before TorchTitan logs it or fails; under pipeline parallelism not all ranks have the loss
        to fail of, and the others would wait for them.
        """
        self._judge(self._health.read())
        num_batches = self.gradient_accumulation_steps * self.num_pipeline_parallel_microbatches
        batches = self.dataloader.recent_documents(num_batches)
        is_bad = self._health.send(
            StepData(self.step, self._first_row, list(dict.fromkeys(chain(*batches)))),
            (param for part in self.model_parts for param in part.parameters()),
            stop=self.stop_request.signal_name is not None,
        )
        if self.config.on_nonfinite == "skip":
            for optimizer in self.optimizers:
                # As torch.amp.GradScaler does: the fused step leaves everything as it is.
                optimizer.found_inf = is_bad
        if self.metrics_processor.should_log(self.step) and not self._judge(self._health.read()):
            raise _UpdateSkippedError

    def _will_validate(self) -> bool:
        return self.config.validator.enable and self.validator.should_validate(self.step)

    def _save_without_step(self, start: dict[str, Any]) -> None:
        """Undo the step that the data, which ran out, did not suffice for; save what there is."""
        self.dataloader.load_state_dict(start)
        self.step -= 1
        self.is_out_of_data = True
        if self.num_steps_run:
            self._judge(self._health.read())
            self.checkpointer.saves_any_step = True
            self.checkpointer.save(self.step)

    # --------------------------------------------------------------------- the verdict

    def _judge(self, verdict: Verdict | None) -> bool:
        """Act on what all ranks know of a step: they come here at the same point of the run.

        Returns false for a step whose numbers are not finite, if such steps are skipped.
        """
        if verdict is None:
            return True
        if verdict.should_stop:
            self.is_stopping = self._stop.is_reached = True
            self.checkpointer.saves_any_step = True
        if verdict.is_finite:
            self._num_skipped_in_a_row = 0
            return True
        text = self._describe(verdict)
        if self.config.on_nonfinite == "stop":
            self._fail(text, 'training.on_nonfinite = "skip" would leave out the update')
        self.num_skipped_steps += 1
        self._num_skipped_in_a_row += 1
        if dist.get_rank() == 0:
            logger.warning(f"{text}: update skipped, {self.num_skipped_steps} so far")
        metrics = {"training/skipped_steps": self.num_skipped_steps}
        self.metrics_processor.logger.log(metrics, verdict.data.step)
        if self._num_skipped_in_a_row == _MAX_SKIPPED_IN_A_ROW:
            self._fail(text, f"it is the {_MAX_SKIPPED_IN_A_ROW}th step in succession")
        return False

    def _describe(self, verdict: Verdict) -> str:
        """What is not finite, on which ranks, in which data. Collective."""
        index, what = (1, "gradient") if verdict.is_loss_finite else (0, "loss")
        gathered: list[Any] = [None] * dist.get_world_size()
        here = (verdict.is_finite_here[index], verdict.data.documents)
        dist.all_gather_object(gathered, here)
        ranks = [rank for rank, (is_finite, _) in enumerate(gathered) if not is_finite]
        where = f"ranks {', '.join(map(str, ranks))}" if ranks else "no rank alone, but their sum"
        involved = ranks or range(len(gathered))
        names = list(dict.fromkeys(chain(*(gathered[rank][1] for rank in involved))))
        more = f" and {len(names) - _NUM_NAMED} more" if len(names) > _NUM_NAMED else ""
        first = verdict.data.first_row
        return (
            f"The {what} of step {verdict.data.step} is not finite ({where}; rows {first} to "
            f"{first + self.global_batch_size - 1} of the data; documents there: "
            f"{', '.join(names[:_NUM_NAMED])}{more})"
        )

    def _fail(self, text: str, remark: str) -> NoReturn:
        self.checkpointer.maybe_wait_for_saving()
        latest = self.checkpointer.latest() if self.config.checkpoint.enable else None
        raise FloatingPointError(
            f"{text}; {remark}. The last good checkpoint is {latest or 'none'}."
        )

    # ------------------------------------------------------------------------ the state

    @property
    def global_batch_size(self) -> int:
        """Rows of a step."""
        local = self.config.training.local_batch_size
        return local * self.batch_degree * self.gradient_accumulation_steps

    @property
    def _token_degree(self) -> int:
        """Ranks that each count their own part of the tokens."""
        dims = self.parallel_dims
        return dims.dp_replicate * dims.dp_shard * dims.cp

    def state_dict(self) -> dict[str, Any]:
        """With the tokens of all ranks, where TorchTitan's has one rank's: another layout goes on
        from there."""
        return {
            **super().state_dict(),
            "ntokens_seen": self.ntokens_seen * self._token_degree,
            "num_skipped_steps": self.num_skipped_steps,
            "global_batch_size": self.global_batch_size,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict["global_batch_size"] != self.global_batch_size:
            raise ValueError(
                f"training.global_batch_size is {self.global_batch_size} with this number of ranks "
                f"and was {state_dict['global_batch_size']} in the checkpoint. Set it to that."
            )
        super().load_state_dict(state_dict)
        self.ntokens_seen //= self._token_degree
        self.num_skipped_steps = state_dict["num_skipped_steps"]
