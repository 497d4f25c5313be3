"""What a run says when it ends: how, where everything lies, and what to do next.

Each command that is printed does, as it stands, what its line says.
"""

import os
import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from recipes.run.trainer import RunTrainer

_RENDEZVOUS_PORT = 29500


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """How a run ended."""

    step: int
    """The last that is done."""

    num_steps_run: int
    """By this process."""

    checkpoint: Path | None
    """The newest complete one of the run directory."""

    is_resumable: bool
    """Whether that checkpoint has the state of the training, not the model alone."""

    stopped_by: str | None = None
    """The signal that asked for the end."""

    is_out_of_data: bool = False


def describe_files(config: RunTrainer.Config, end: End) -> list[str]:
    """Where everything lies, one line each."""
    lines = []
    if config.metrics.enable_tensorboard:
        folder = Path(config.dump_folder, config.metrics.save_tb_folder)
        lines.append(f"Curves: tensorboard --logdir {_quote(folder)}")
    return [*lines, f"Checkpoint: {end.checkpoint or 'none'}"]


def describe_end(config: RunTrainer.Config, end: End) -> list[str]:
    """Why the run did not train to its last step, one line each; [] if it did."""
    last_step = config.training.steps
    if end.stopped_by is not None and end.step < last_step:
        return [f"Stopped by {end.stopped_by} after step {end.step} of {last_step}."]
    if end.is_out_of_data:
        return [f"Ran out of data after step {end.step} of {last_step}."]
    if end.num_steps_run == 0:
        source = end.checkpoint or config.checkpoint.initial_load_path
        return [f"Nothing to train: {source} is at step {end.step} of {last_step}."]
    return []


def describe_next(config: RunTrainer.Config, end: End) -> str:
    """How to go on from there."""
    step, last_step, schedule_end = end.step, config.training.steps, config.lr_scheduler.total_steps
    if end.checkpoint is None or not saves(config):
        is_asked_for_less = step >= last_step and end.num_steps_run == 0
        return "Raise training.steps." if is_asked_for_less else "Nothing was saved."
    if not end.is_resumable:
        return (
            "It holds the model alone (checkpoint.last_save_model_only = true), so this run cannot "
            f"be trained on. To start another from it{_where()}: {_start_from(config, end)}"
        )
    resume = _resume(config)
    if (
        end.num_steps_run == 0
    ):  # config.toml is from before: a run that was moved names the old place
        resume += f" --job.dump_folder {_quote(config.dump_folder)}"
    if end.is_out_of_data:
        num_epochs = config.dataloader.data.num_epochs
        assert num_epochs is not None  # else there is no end of the data
        more = f"--data.num_epochs {num_epochs + 1}"
        return f"To train on, with the data once more{_where()}: {resume} {more}"
    if step < last_step:
        return f"To resume{_where()}: {resume}"
    if schedule_end is not None and step >= schedule_end:
        return (
            f"The learning rate's schedule ends here (lr_scheduler.total_steps = {schedule_end}). "
            f"To start another run from this checkpoint{_where()}: {_start_from(config, end)}"
        )
    num_steps = 2 * step if schedule_end is None else min(2 * step, schedule_end)
    return f"To train on{_where()}: {resume} --training.steps {num_steps}"


def saves(config: RunTrainer.Config) -> bool:
    """Whether the run saves checkpoints at all."""
    return config.checkpoint.enable and not config.checkpoint.load_only


def _resume(config: RunTrainer.Config) -> str:
    """The command that goes on in the run directory."""
    command = f"{_launch()} --job.config_file {_quote(Path(config.dump_folder, 'config.toml'))}"
    checkpoint = config.checkpoint
    # What config.toml has of how this process loaded must not be done again.
    if checkpoint.load_step != -1:
        command += " --checkpoint.load_step=-1"
    if checkpoint.exclude_from_loading and not checkpoint.initial_load_path:
        command += " --checkpoint.exclude_from_loading='[]'"
    return command


def _start_from(config: RunTrainer.Config, end: End) -> str:
    """The command that trains another run from the weights of the last checkpoint."""
    folder = f"{config.dump_folder.rstrip('/')}_from_step_{end.step}"
    command = (
        f"{_resume(config)} --job.dump_folder {_quote(folder)} "
        f"--checkpoint.initial_load_path {_quote(end.checkpoint)} --checkpoint.allow_pickle"
    )
    checkpoint = config.checkpoint
    for name in ("initial_load_in_hf_quantized", "initial_load_in_hf"):
        if getattr(checkpoint, name):
            command += f" --checkpoint.{name}=false"
    if checkpoint.initial_load_path and not checkpoint.initial_load_model_only:
        command += " --checkpoint.initial_load_model_only=true"
    return command


def _where() -> str:
    num_nodes = _count_nodes()
    return f", on each of {num_nodes} nodes" if num_nodes > 1 else ""


def _launch() -> str:
    """What starts as many ranks again, on each node."""
    if os.environ["WORLD_SIZE"] == "1":
        return f"{_find_command('python', _quote(sys.executable))} -m recipes.train"
    torchrun = _find_command("torchrun", f"{_quote(sys.executable)} -m torch.distributed.run")
    num_nodes = _count_nodes()
    if num_nodes > 1:
        torchrun += (
            f" --nnodes={num_nodes} --rdzv_backend=c10d "
            f"--rdzv_endpoint={os.environ['MASTER_ADDR']}:{_RENDEZVOUS_PORT}"
        )
    return f"{torchrun} --nproc_per_node={os.environ['LOCAL_WORLD_SIZE']} -m recipes.train"


def _count_nodes() -> int:
    num_ranks = int(os.environ["WORLD_SIZE"])
    # Without a launcher nothing says how many of them are here.
    return 1 if num_ranks == 1 else num_ranks // int(os.environ["LOCAL_WORLD_SIZE"])


def _find_command(name: str, otherwise: str) -> str:
    """`name` if it is on PATH and belongs to the running Python."""
    found = shutil.which(name)
    is_own = found is not None and Path(found).parent == Path(sys.executable).parent
    return name if is_own else otherwise


def _quote(path: Path | str | None) -> str:
    return shlex.quote(str(path))
