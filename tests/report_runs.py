"""Run directories with curves of known values."""

from pathlib import Path
from typing import Any

import tomli_w
from torch.utils.tensorboard import SummaryWriter

from recipes.report import tags

NITP_CURVE = {1: 1.0, 2: 0.8, 3: 0.4, 4: 0.1, 5: 0.2, 6: 0.3, 7: 0.05}
"""Falls, by half at step 3, to 0.1; climbs to 0.3 at step 6; declines."""

NTP_CURVE = {1: 9.0, 2: 8.0, 3: 7.0, 4: 6.5, 5: 6.0, 6: 5.5, 7: 5.25}


def write_start(run: Path, curves: dict[str, dict[int, float]], time: str = "000000") -> None:
    """What one start of a run logs."""
    with SummaryWriter(str(run / "tb" / f"20260101-{time}")) as writer:
        for tag, curve in curves.items():
            for step, value in curve.items():
                writer.add_scalar(tag, value, step)


def write_run(
    run: Path,
    curves: dict[str, dict[int, float]],
    *,
    seed: int | str = 0,
    nitp: bool | None = None,
    steps: int | None = None,
    **options: Any,
) -> Path:
    """A run of one start; options as `table__key`. nitp: by default, if it has a NITP loss."""
    write_start(run, curves)
    nitp = tags.NITP in curves if nitp is None else nitp
    values: dict[str, dict[str, Any]] = {
        "job": {"description": f"run {run.name}", "dump_folder": str(run)},
        "nitp": {"enable": nitp, "target_layer": 2, "weight": 1.0},
        "data": {"seed": 0},
        "training": {"steps": steps or max(curves[tags.NTP])},
        "metrics": {"log_freq": 1, "save_tb_folder": "tb"},
        "debug": {"seed": seed},
    }
    for option, value in options.items():
        table, _, key = option.partition("__")
        values.setdefault(table, {})[key] = value
    (run / "config.toml").write_text(tomli_w.dumps(values))
    return run
