"""Runs the trials of a plan one after another, and remembers what failed.

A trial that is done is passed over, one that was interrupted resumes by itself (recipes.train
does), and one that fails leaves the end of its log in `failed/` while the sweep goes on.
"""

import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType

from recipes.config.settings import SettingsError
from recipes.run.lock import RunLock
from recipes.stop import SIGNALS, CatchesSignals, remark_on_next, say
from recipes.sweep.plan import Plan, Trial

LOGS, FAILED = "logs", "failed"
"""Folders beside the run directories."""

NUM_LINES = 40
"""Of a failed run's log."""

SHUTDOWN_TIMEOUT_S = 540
"""How long torchrun waits for ranks that save; its own 30 s may end a save."""

_POLL_S, _SIGNAL_POLL_S = 1.0, 0.2


def build_launch(num_ranks: int | None) -> list[str]:
    """What starts recipes.train: one process, or `num_ranks` of this machine under torchrun."""
    if num_ranks is None:
        return [sys.executable, "-m", "recipes.train"]
    return [
        sys.executable, "-m", "torch.distributed.run", "--standalone",
        f"--nproc_per_node={num_ranks}", f"--shutdown_timeout={SHUTDOWN_TIMEOUT_S}",
        f"--signals_to_handle={','.join(number.name for number in SIGNALS)}",
        "-m", "recipes.train",
    ]  # fmt: skip


class Runner(CatchesSignals):
    """Within the context signals to stop go to the run under way, which saves and ends; no other
    starts after it."""

    def __init__(self, plan: Plan, launch: Sequence[str]) -> None:
        super().__init__()
        self._plan = plan
        self._launch = launch
        self._received: list[int] = []

    @property
    def is_stopped(self) -> bool:
        return bool(self._received)

    def run(self) -> None:
        """All trials that are not done, once each. Raises OSError if nothing can be written."""
        num = len(self._plan.trials)
        for i, trial in enumerate(self._plan.trials):
            if not trial.is_done:
                self._wait_for_owner(trial)
            if self.is_stopped:
                return
            head = f"[{i + 1}/{num}] {trial.name}"
            if trial.is_done:
                self._remove_failure(trial)
                print(f"{head}: done", flush=True)
                continue
            print(f"{head}: running, log {self._log(trial)}", flush=True)
            began = time.monotonic()
            fault = self._train(trial)
            if self.is_stopped:
                return
            word = f"failed: {fault}" if fault else "done"
            print(f"{head}: {word}, after {time.monotonic() - began:.0f} s", flush=True)

    def _train(self, trial: Trial) -> str | None:
        """Why the trial failed; None if it is done, or was stopped."""
        self._remove_failure(trial)
        log = self._log(trial)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            begin = output.tell()
            # A session of its own: Ctrl-C reaches it through this process alone, and once.
            process = subprocess.Popen(
                [*self._launch, *trial.arguments],
                stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                start_new_session=True,
            )  # fmt: skip
            exit_code = self._wait(process)
        if self.is_stopped or (exit_code == 0 and trial.is_done):
            return None
        fault = f"exit code {exit_code}"
        if exit_code == 0:
            fault += f" without {trial.last_checkpoint.name}: stopped, or its data ran out"
        self._keep_failure(trial, fault, begin)
        return fault

    def _wait(self, process: subprocess.Popen) -> int:
        """The exit code. Each signal is passed on once, when there is a process to have it: a
        second one would end a run that saves."""
        num_sent = 0
        while True:
            for number in self._received[num_sent:]:
                process.send_signal(number)
                num_sent += 1
            with suppress(subprocess.TimeoutExpired):
                return process.wait(_SIGNAL_POLL_S)

    def _wait_for_owner(self, trial: Trial) -> None:
        """Until no process trains in the directory: a run outlives a sweep that was killed."""
        if not trial.folder.exists():
            return
        has_said = False
        while not self.is_stopped:
            try:
                with RunLock(str(trial.folder), self._plan.option):
                    return
            except SettingsError as error:
                if not has_said:
                    print(f"waiting: {error}", file=sys.stderr, flush=True)
                has_said = True
                time.sleep(_POLL_S)

    def note_signal(self, number: int, frame: FrameType | None) -> None:
        self._received.append(number)
        name = signal.Signals(number).name
        say(f"{name}: the run under way saves and ends{remark_on_next(number)}")

    def _log(self, trial: Trial) -> Path:
        return self._plan.folder / LOGS / f"{trial.name}.log"

    def _keep_failure(self, trial: Trial, fault: str, begin: int) -> None:
        path = failure_of(self._plan, trial)
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._log(trial).open("rb") as log:
            log.seek(begin)
            lines = log.read().decode("utf-8", "replace").splitlines()
        text = "\n".join([f"{trial.name}: {fault}. The end of its log:", "", *lines[-NUM_LINES:]])
        path.write_text(text + "\n", encoding="utf-8")

    def _remove_failure(self, trial: Trial) -> None:
        failure_of(self._plan, trial).unlink(missing_ok=True)


def failure_of(plan: Plan, trial: Trial) -> Path:
    """What is there while the trial's last start failed."""
    return plan.folder / FAILED / f"{trial.name}.log"
