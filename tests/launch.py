"""Starts `recipes.train` as a user would, without the ten seconds that importing torch costs.

A fork server has imported everything; each rank is a fork of it, with its own environment, output
and exit code, and can be signalled or killed.
"""

import os
import re
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import get_context, set_forkserver_preload, set_start_method
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint.format_utils as dcp_format
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import recipes.build  # noqa: F401  in the server, not in each fork
from recipes import train
from recipes.config.arguments import format_overrides, parse_overrides
from recipes.config.idle import depends_on
from recipes.run.trainer import RunTrainer
from tests.waiting import DEADLINE_S, block, wait_until

set_forkserver_preload([__name__])

SMALL = [
    "--job.config_file=train_configs/debug.toml",
    "--model.num_layers=2", "--model.dim=32", "--model.num_heads=2", "--model.num_kv_heads=1",
    "--model.head_dim=16", "--model.ffn_dim=64", "--nitp.target_layer=1", "--training.seq_len=64",
    "--validation.enable=false", "--metrics.log_freq=1",
    "--debug.enable_structured_logging=false", "--lr_scheduler.warmup_steps=2",
]  # fmt: skip
"""Overrides for steps of milliseconds."""

CLOCK = re.compile("(validation_metrics/)?(throughput|tflops|mfu|time_metrics|memory)")
"""Tags of what depends on clock and machine."""

PIPELINE = [
    "--parallelism.pipeline_parallel_degree=2", "--training.disable_cuda_graphs",
    "--parallelism.pipeline_parallel_microbatch_size=2",
]  # fmt: skip
"""Further overrides for two stages."""


@dataclass
class Rank:
    """One started process."""

    process: BaseProcess
    log: Path

    def text(self) -> str:
        """What it has printed so far."""
        return self.log.read_text()

    def errors(self) -> list[str]:
        """Its lines that begin with `error: `."""
        return [line for line in self.text().splitlines() if line.startswith("error: ")]

    def children(self) -> list[int]:
        """Process ids of its worker processes."""
        pid = self.process.pid
        return [
            int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        ]

    def send(self, number: signal.Signals) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def wait(self) -> int:
        """The exit code, negative for a signal."""
        self.process.join(DEADLINE_S)
        if self.process.exitcode is None:
            self.process.kill()
            raise TimeoutError(f"not ended after {DEADLINE_S:g} s:\n{self.text()[-3000:]}")
        return self.process.exitcode

    def wait_for(self, text: str) -> None:
        """Until it has printed `text`. Fails if it ends without."""

        def has_printed() -> bool:
            is_alive = self.process.is_alive()
            return text in self.text() or not is_alive

        wait_until(has_printed, self.text)
        assert text in self.text(), f"no {text!r} in:\n{self.text()[-3000:]}"


def start(
    arguments: Sequence[str],
    folder: Path,
    num_ranks: int = 1,
    *,
    for_rank: Callable[[int], Sequence[str]] = lambda rank: (),
    before: Callable[[int], None] | None = None,
    environment: Mapping[str, str | None] | None = None,
    main: Callable[[Sequence[str]], int] = train.main,
) -> list[Rank]:
    """Start the ranks of one run; logs go to `folder`. No launcher watches over them.

    for_rank: further arguments of one rank. before: called in each rank before training; a
    function of a module, or a functools.partial of one. environment: beside what a launcher sets;
    None takes a variable away. main: what each rank runs, given the arguments; its exit code.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    ranks = []
    for rank in range(num_ranks):
        variables: dict[str, str | None] = {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(num_ranks),
            "LOCAL_WORLD_SIZE": str(num_ranks), "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port), **(environment or {}),
        }  # fmt: skip
        log = folder / f"rank{rank}.log"
        log.write_text("")
        process = get_context("forkserver").Process(
            target=_run, args=(main, [*arguments, *for_rank(rank)], variables, log, rank, before)
        )
        process.start()
        ranks.append(Rank(process, log))
    return ranks


def run(
    arguments: Sequence[str],
    folder: Path,
    num_ranks: int = 1,
    before: Callable[[int], None] | None = None,
    main: Callable[[Sequence[str]], int] = train.main,
) -> list[Rank]:
    """Start the ranks, wait until they end, and check that they ended well."""
    ranks = start(arguments, folder, num_ranks, before=before, main=main)
    for rank in ranks:
        assert rank.wait() == 0, rank.text()[-3000:]
    return ranks


def compose(arguments: Sequence[str]) -> list[str]:
    """One command line of a list that was added to: the last of each option, and nothing that what
    is false turns off."""
    try:
        texts = parse_overrides(arguments)
    except ValueError:  # meant to be refused
        return [*arguments]
    off = [name for name, text in texts.items() if text == "false"]
    return format_overrides(
        {
            name: text
            for name, text in texts.items()
            if not any(name != switch and depends_on(name, switch) for switch in off)
        }
    )


def wait(ranks: Sequence[Rank]) -> list[int]:
    """The exit codes, by rank."""
    return [rank.wait() for rank in ranks]


def all_errors(ranks: Sequence[Rank]) -> list[str]:
    """What `Rank.errors` gives, of all of them."""
    return [line for rank in ranks for line in rank.errors()]


def hold_after(num_steps: int, rank: int, *, until: Path | None = None) -> None:
    """For `before`: after this many steps the next begins when the file `until` is there; without
    one, never."""
    train_step = RunTrainer.train_step
    num_made = 0

    def train_or_wait(self: RunTrainer, data_iterator: Any) -> None:
        nonlocal num_made
        if num_made == num_steps:
            wait_until(until.exists) if until else block()
        train_step(self, data_iterator)
        num_made += 1

    RunTrainer.train_step = train_or_wait  # type: ignore[method-assign]


def load_state(checkpoint: Path) -> dict[str, Any]:
    """All of a checkpoint, tensors and other values, by flat name."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "state.pt")
        dcp_format.dcp_to_torch_save(checkpoint, file)
        return _flatten(torch.load(file, weights_only=False))


def assert_equal_states(first: dict[str, Any], second: dict[str, Any]) -> None:
    """Same names, same bits."""
    assert first.keys() == second.keys()
    for name, value in first.items():
        is_tensor = isinstance(value, torch.Tensor)
        same = torch.equal(value, second[name]) if is_tensor else value == second[name]
        assert same, f"{name}: {value} and {second[name]}"


def read_curves(run: Path) -> dict[str, dict[int, float]]:
    """What a run logged, tag -> step -> value, without what depends on the clock. A step that was
    trained again after an interruption must have given the same value again."""
    curves: dict[str, dict[int, float]] = {}
    for folder in sorted((run / "tb").iterdir()):
        for file in sorted(folder.iterdir()):
            events = EventAccumulator(str(file)).Reload()
            for tag in events.Tags()["scalars"]:
                if re.match(
                    "(validation_metrics/)?(throughput|tflops|mfu|time_metrics|memory)", tag
                ):
                    continue
                curve = curves.setdefault(tag, {})
                for event in events.Scalars(tag):
                    assert curve.setdefault(event.step, event.value) == event.value, (tag, event)
    return curves


def _flatten(state: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in state.items():
        flat |= (
            _flatten(value, f"{prefix}{name}.")
            if isinstance(value, dict)
            else {prefix + str(name): value}
        )
    return flat


def _run(
    main: Callable[[Sequence[str]], int],
    arguments: Sequence[str],
    variables: Mapping[str, str | None],
    log: Path,
    rank: int,
    before: Callable[[int], None] | None,
) -> None:
    output = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", 1), os.fdopen(2, "w", 1)
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    set_start_method("fork", force=True)  # workers of the data start as in a process of its own
    torch.set_num_threads(1)  # a fork has none of its parent's threads
    if before is not None:
        before(rank)
    exit_code = main(compose(arguments))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)
