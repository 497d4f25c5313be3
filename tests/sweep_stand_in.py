"""Stands in for `python -m recipes.train`: writes what a run writes, in milliseconds.

It logs a loss that follows from its settings and the step, saves every step, and resumes after the
newest. `tests.json` in the sweep's folder says what goes wrong: {"kill": [[run, step], ...]}, each
once, kills this process and the sweep that started it; {"fail": {run: step}} raises every time;
{"wait": [run, step]} does not end that step before a signal asks the run to stop.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from recipes.config.settings import resolve_settings
from recipes.report import tags
from recipes.run.folder import save_config
from recipes.stop import StopRequest
from tests.waiting import wait_until


def loss_at(target_layer: int, seed: int, is_nitp: bool, step: int) -> float:
    return 8.0 / step + 0.25 * seed + (0.5 + 0.125 * target_layer if is_nitp else 0.0)


def main(arguments: list[str]) -> int:
    settings = resolve_settings(None, arguments)
    values = settings.values
    run = Path(values["job"]["dump_folder"])
    plan = run.parent / "tests.json"
    wrong = json.loads(plan.read_text()) if plan.exists() else {}
    with (run.parent / "order.txt").open("a") as order:
        order.write(f"{run.name}\n")
    save_config(settings)
    saved = [int(path.parent.name[5:]) for path in run.glob("checkpoint/step-*/.metadata")]
    first = max(saved, default=0) + 1
    writer = EventFileWriter(str(run / "tb" / f"start-{time.time_ns()}"))
    nitp = values["nitp"]
    with StopRequest() as stop:
        for step in range(first, values["training"]["steps"] + 1):
            loss = loss_at(nitp["target_layer"], values["debug"]["seed"], nitp["enable"], step)
            value = Summary.Value(tag=tags.NTP, simple_value=loss)
            writer.add_event(Event(step=step, wall_time=0.0, summary=Summary(value=[value])))
            writer.flush()
            if [run.name, step] in wrong.get("kill", []):
                wrong["kill"].remove([run.name, step])
                plan.write_text(json.dumps(wrong))
                os.kill(os.getppid(), signal.SIGKILL)
                os.kill(os.getpid(), signal.SIGKILL)
            if wrong.get("fail", {}).get(run.name) == step:
                print(f"error: step {step} is not finite", file=sys.stderr)
                return 1
            print(f"step {step}", flush=True)
            (run / "checkpoint" / f"step-{step}").mkdir(parents=True)
            (run / "checkpoint" / f"step-{step}" / ".metadata").touch()
            if wrong.get("wait") == [run.name, step]:
                wait_until(lambda: stop.signal_name)
            if stop.signal_name:
                break
    writer.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
